"""The live engine's scheduler decides what another one decides that is told the same."""

import dataclasses
from pathlib import Path

import pytest

from epdjax import SamplingParams
from epdjax.planning.replay import first_difference, record, replay
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill
from tests.serving.conftest import checkpoint  # noqa: F401  (a fixture)
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("mesh", ["1EPD", "1E1P1D", "2E1P2D"])
def test_decisions_are_the_same(checkpoint: Path, mesh: str) -> None:  # noqa: F811
    with make_llm(checkpoint, mesh) as llm:
        recording = record(llm._engine.scheduler)
        again = [ask("again?", picture(60, 40, 2))] * 3
        llm.chat([*CONVERSATIONS.values(), *again, *CONVERSATIONS.values()], GREEDY)
    assert {type(work) for work in recording.decisions} >= ({Encode, Prefill, Decode, MoveMM})
    assert ("MoveKV" in {type(work).__name__ for work in recording.decisions}) == (mesh != "1EPD")
    assert first_difference(recording.decisions, replay(recording)) is None


def test_a_difference_is_found() -> None:
    one, other = (MoveKV(n, "P", "D", ()) for n in (1, 2))
    assert first_difference([one, other], [one, other]) is None
    assert first_difference([one], [one, other]) == 1
    assert first_difference([one, other], [one, dataclasses.replace(other, source="Q")]) == 1
