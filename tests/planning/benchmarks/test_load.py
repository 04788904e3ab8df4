"""Workloads are what they say they are, and an engine under one loses nothing."""

import asyncio
import itertools
from pathlib import Path

import pytest

from epdjax.planning.benchmarks.load import LoadReport, run
from epdjax.planning.benchmarks.traffic import Arrival, Mix, poisson
from epdjax.serving.llm import AsyncLLM
from tests.models.tiny import make_tiny_checkpoint
from tests.serving.deployments import SETTINGS


def test_a_workload_comes_from_its_seed() -> None:
    first, again, other = (list(poisson(20, 50, seed=seed)) for seed in (1, 1, 2))
    assert [a.at_s for a in first] == [a.at_s for a in again] != [a.at_s for a in other]
    assert 800 < len(first) < 1200 and all(x.at_s < y.at_s for x, y in itertools.pairwise(first))
    kinds = {kind: sum(a.kind == kind for a in first) / len(first) for kind in ("text", "one_picture", "long_prompt")}
    assert kinds["text"] == pytest.approx(0.35, abs=0.06) and kinds["one_picture"] == pytest.approx(0.4, abs=0.06)
    assert 0.02 < sum(a.leaves_after is not None for a in first) / len(first) < 0.09


@pytest.mark.slow
def test_nothing_is_lost_under_load(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path)
    mix = Mix(long_words=25, answer=(2, 12), pictures=6)
    arrivals: list[Arrival] = list(poisson(40, 2.0, seed=3, mix=mix, leaving=0.2))

    async def serve() -> LoadReport:
        llm = AsyncLLM(folder, "2E1P1D", **SETTINGS)
        try:
            return await run(llm, arrivals, compare=10)
        finally:
            await llm.shutdown(drain=False)

    report = asyncio.run(serve())
    assert report.passed, report
    assert sum(report.ends.values()) == len(arrivals)
    assert set(report.ends) <= {"answered", "left", "context_length_exceeded"}, report.ends
    assert report.compared == 10
