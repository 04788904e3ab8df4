from pathlib import Path

import pytest

from epdjax.models.random_checkpoint import write_random_internvl
from epdjax.planning.benchmarks.contestants import Epdjax, Transformers
from epdjax.planning.benchmarks.paired import Plan, compare, matmul_flops, read_bandwidth
from tests.planning.benchmarks.small_models import SMALL
from tests.serving.deployments import SETTINGS


@pytest.mark.torch
def test_both_give_the_same_tokens_and_are_timed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_random_internvl(tmp_path, SMALL)
    ours, theirs = Epdjax(tmp_path, "1EPD", **SETTINGS), Transformers(tmp_path, batch=4)
    plan = Plan(requests=6, answer=(2, 9), concurrent=(1, 3), pace_tokens=5, words=8, repeats=2)
    try:
        made = compare(ours, theirs, SMALL, plan)
    finally:
        ours.close()
        theirs.close()
    assert made.answers == made.same == 6 * 3 and made.first_difference is None
    assert [m.what for m in made.measured] == [
        "offline",
        "first token of one request",
        "token of each of 1 answers",
        "token of each of 3 answers",
    ]
    for measured in made.measured:
        assert measured.values.keys() == {ours.name, theirs.name} and measured.best > 0
        assert all(len(values) == 2 for values in measured.values.values())
    offline = made.measured[0]
    assert 0 < offline.median(ours.name) < offline.best


def test_the_machine_is_measured() -> None:
    assert 1e8 < matmul_flops(256) < 1e15
    assert 1e8 < read_bandwidth(8) < 1e14
