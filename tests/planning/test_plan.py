"""The plan command: a search over real capacities, and what it says to a mistake."""

import pytest

from epdjax.cli import main
from epdjax.models.presets import preset
from epdjax.planning.capacity import Capacity, DoesNotFit
from epdjax.planning.space import Choice
from epdjax.serving.config import EngineConfig

SMALL = ["--evaluations", "6", "--requests", "20", "--max-units", "8", "--max-chunk", "512", "--max-seqs", "16"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["MiniCPM-V-2.7"], "did you mean 'MiniCPM-V-2.6'"),
        (["MiniCPM-V-2.6", "--chip", "h100"], "did you mean 'h100-80g'"),
        (["MiniCPM-V-2.6", "--workload", "picture-4"], "did you mean 'pictures-4'"),
        (["MiniCPM-V-2.6", "--slo", "fast"], "such as 2.6/0.04"),
        (["MiniCPM-V-2.6", "--objective", "ttft"], "needs --rate"),
        (["MiniCPM-V-2.6", "--objective", "beauty", "--rate", "1"], "not 'beauty'"),
        (["MiniCPM-V-2.6", "--costs", "nowhere.json"], "nowhere.json"),
        (["MiniCPM-V-2.6", "--devices", "0"], "at least 1"),
    ],
)
def test_mistakes_are_named(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no plan: ") and why in error


@pytest.mark.deviceless
def test_a_plan_for_a_chip_that_is_not_here(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.png"
    words = ["InternVL2-1B", "--devices", "3", "--workload", "pictures-2", "--slo", "1.0/0.05", *SMALL]
    assert main(["plan", *words, "--chart", str(chart)]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 deployments simulated, 0 do not fit" in out
    assert "python scripts/serve.py --model InternVL2-1B --mesh " in out
    assert "monoliths (3EPD)" in out and chart.stat().st_size > 1000


@pytest.mark.deviceless
def test_what_does_not_fit() -> None:
    family, model = preset("Qwen2.5-VL-72B")
    capacity = Capacity(family, model, EngineConfig(model="preset", max_model_len=2048), "a100-80g")
    with pytest.raises(DoesNotFit, match="weights of P over 1 devices of a100-80g are"):
        capacity.sizes(Choice("1E1P1D"))
