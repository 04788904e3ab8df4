from pathlib import Path

import pytest

from epdjax.planning.benchmarks.kv_moves import measure
from tests.models.tiny import make_tiny_checkpoint
from tests.serving.deployments import make_llm


@pytest.mark.slow
def test_what_moves_and_when(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path)
    with make_llm(folder, "1E1P1D") as llm:
        cost = measure(llm, words=30, at_once=2, repeats=2)
        assert 128 < cost.tokens < 250, "two chunks"
        assert cost.sequences == 4 and cost.moves >= 4
        blocks = 4 * -(-cost.tokens // 16)
        layers, heads, width = 2, 2, 32
        assert cost.bytes == pytest.approx(blocks * 16 * layers * 2 * heads * width * 4, rel=0.1)
        assert 0.3 < cost.early < 1
        assert 0 <= cost.exposed_s < cost.all_s
    with make_llm(folder, "1EPD") as llm, pytest.raises(ValueError, match="no KV is moved on 1EPD"):
        measure(llm, words=30)
