from pathlib import Path

import pytest

from epdjax.planning.benchmarks.startup import measure_start
from tests.models.tiny import make_tiny_checkpoint


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_a_trimmed_one_less(tmp_path: Path) -> None:
    folder, cache = make_tiny_checkpoint(tmp_path / "model"), tmp_path / "cache"
    trimmed = measure_start(folder, "1EPD", "trimmed", cache, max_model_len=128)
    assert trimmed.cached == 0 < trimmed.seconds
    again = measure_start(folder, "1EPD", "trimmed", cache, max_model_len=128)
    assert again.cached == again.programs == trimmed.programs
    with pytest.raises(RuntimeError, match="no instance for decode"):
        measure_start(folder, "1E1P", "full", cache)
