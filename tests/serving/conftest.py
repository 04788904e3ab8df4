from pathlib import Path

import pytest

from tests.models.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose greedy answers vary."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), tied=False, num_layers=3)
