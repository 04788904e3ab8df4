"""One trace, live and simulated."""

import math
from pathlib import Path

import pytest

from epdjax.cli import main
from epdjax.demo import demo_model_path
from epdjax.planning.benchmarks.fidelity import Fidelity, compare, trace
from epdjax.planning.metrics import Timeline
from tests.models.tiny import make_tiny_checkpoint


def test_a_trace_comes_from_its_seed() -> None:
    first, again, other = (trace(2.0, 20, seed) for seed in (1, 1, 2))
    assert [a.at_s for a in first] == [a.at_s for a in again] != [a.at_s for a in other]
    assert len(first) == 20 and not any(a.slow or a.leaves_after is not None for a in first)


def test_errors_are_shares_of_what_was_live() -> None:
    live, simulated = (
        tuple(Timeline(0.0, first + 1, [first, first + 1], "length") for first in firsts)
        for firsts in ((1.0, 3.0), (1.0, 2.0))
    )
    found = Fidelity(live, simulated, 10, None)
    assert found.error("ttft", "mean") == pytest.approx(-0.25) and found.error("tpot", "mean") == 0.0


@pytest.mark.parametrize("option", ["--rounds", "--requests", "--rate"])
def test_nothing_to_compare_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-simulator", "--model", str(demo_model_path()), option, "0"]) == 2
    assert f"no comparison: {option} must be more than 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_requests_are_served_and_simulated(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, num_layers=1)
    settings = {"max_model_len": 512, "max_seqs": 4, "max_chunk": 128, "max_units": 2, "buckets": "trimmed"}
    found = compare(folder, "1E1P1D", rate=5.0, count=4, rounds=2, profile_s=0.0, **settings)
    assert found.difference is None and found.decisions > 8 * 3
    live, simulated = found.reports
    assert (live.answered, live.tokens) == (simulated.answered, simulated.tokens) and live.answered == 8
    assert all(math.isfinite(found.error(metric, "mean")) for metric in ("ttft", "tpot", "e2el"))
