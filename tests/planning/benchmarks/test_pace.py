import asyncio
from pathlib import Path

import pytest

from epdjax.models.random_checkpoint import write_random_internvl
from epdjax.planning.benchmarks.pace import Gaps, Layout, Pace, make_engine, measure_pace
from tests.planning.benchmarks.small_models import SMALL


@pytest.mark.slow
def test_running_answers_are_timed_alone_and_beside_others(tmp_path: Path) -> None:
    write_random_internvl(tmp_path, SMALL)
    llm = make_engine(tmp_path, Layout("1EPD", 128), prompt_tokens=300, streams=2)

    async def run() -> Pace:
        try:
            return await measure_pace(llm, streams=2, seconds=0.5, prompt_tokens=300, tiles=4)
        finally:
            await llm.shutdown(drain=False)

    pace = asyncio.run(run())
    for gaps in (pace.alone, pace.beside):
        # On a loaded machine more than half of the tokens may come together with the one before.
        assert gaps.tokens > 10 and 0 <= gaps.p50 <= gaps.p99 <= gaps.longest < 30 and gaps.longest > 0
    assert pace.prompts >= 1 and pace.pictures >= 1
    assert pace.prompt_s > 0 and pace.picture_s > 0
    assert pace.prompt_tokens == pytest.approx(300, abs=10)


def test_tokens_that_come_together_have_one_gap() -> None:
    assert Gaps.of([0.1, 0.0, 0.0, 0.0]) == Gaps(0.0, pytest.approx(0.097), 0.1, 4)


def test_dimensions_must_hold_the_alphabet(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="300 or more"):
        write_random_internvl(tmp_path, replace(SMALL, vocab=200))
