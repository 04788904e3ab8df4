"""The plan command: a search over real capacities, and what it says to a mistake."""

from pathlib import Path

import pytest
from PIL import Image

from epdjax.cli import main
from epdjax.models.presets import preset
from epdjax.planning.capacity import Capacity, DoesNotFit
from epdjax.planning.charts import attainment_chart
from epdjax.planning.space import Choice
from epdjax.serving.config import EngineConfig

SMALL = ["--requests", "20", "--max-model-len", "4096", "--max-units", "4", "--max-chunk", "128", "--max-seqs", "4"]


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
        (["MiniCPM-V-2.6", "--megapixel-s", "-1"], "megapixel_s must not be negative"),
        (["MiniCPM-V-2.6", "--megapixel-s", "0.1", "--workers", "0"], "workers must be at least 1"),
    ],
)
def test_mistakes_are_named(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("no plan: ") and why in error


def test_a_chart_is_drawn(tmp_path: Path) -> None:
    curves = {"chosen": [(1.0, 1.0), (2.0, 0.4)], "monoliths": [(2.0, 0.2), (1.0, 0.9)]}
    attainment_chart(tmp_path / "chart.png", curves, "a model")
    width, height = Image.open(tmp_path / "chart.png").size
    assert width > height > 100


@pytest.mark.deviceless
def test_a_plan_for_a_chip_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["InternVL2-1B", "--devices", "3", "--workload", "pictures-1", "--objective", "ttft", "--rate", "1"]
    assert main(["plan", *words, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "8 of 8 deployments simulated, 0 do not fit" in out
    assert "python scripts/serve.py --model InternVL2-1B --mesh " in out
    assert "monoliths (3EPD): 0." in out and "s ttft" in out


@pytest.mark.deviceless
def test_what_does_not_fit() -> None:
    family, model = preset("Qwen2.5-VL-72B")
    capacity = Capacity(family, model, EngineConfig(model="preset", max_model_len=2048), "a100-80g")
    with pytest.raises(DoesNotFit, match="weights of D over 1 devices of a100-80g are"):
        capacity.sizes(Choice("1E1P1D"))
