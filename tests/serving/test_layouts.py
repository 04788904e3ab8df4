"""The central test of the project: the same answer from every mesh spec, alone and in company, cold and warm."""

import dataclasses
from pathlib import Path

import pytest

from epdjax import SamplingParams
from epdjax.serving.audit import audit
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=7, max_tokens=24, ignore_eos=True)
PENALISED = SamplingParams(
    temperature=0,
    repetition_penalty=1.2,
    presence_penalty=0.6,
    frequency_penalty=0.4,
    logit_bias={40: 2.0, 75: -100.0},
    max_tokens=24,
    min_tokens=24,
    stop_token_ids=(60, 61, 62),
)
EVERYTHING = dataclasses.replace(PENALISED, temperature=0.9, min_p=0.02, top_p=0.95, seed=11)
KINDS = {"greedy": GREEDY, "seeded": SEEDED, "penalised": PENALISED, "everything": EVERYTHING}
STRANGERS = [(ask("what in the", picture(90, 30, 9)), 20), (ask("an on er " * 12), 24)]

LAYOUTS = ["1EP1D", "1E1PD", "1E1P1D", "3E1P1D", "2E2P2D", "1E,1Px2,1Dx2", "1E,1P,1Dx2", "1E,1Px2,1D"]


def answers(llm, params: SamplingParams) -> dict[str, tuple[int, ...]]:
    """Each conversation alone."""
    return {name: llm.chat(some, params)[0].outputs[0].token_ids for name, some in CONVERSATIONS.items()}


def answers_in_company(llm, params: SamplingParams) -> dict[str, tuple[int, ...]]:
    """All conversations at once, among strangers that sample at random."""
    strangers = [some for some, _ in STRANGERS]
    noise = [SamplingParams(temperature=2.0, max_tokens=length, ignore_eos=True) for _, length in STRANGERS]
    mixed = [strangers[0], *CONVERSATIONS.values(), strangers[1]]
    outputs = llm.chat(mixed, [noise[0], *[params] * len(CONVERSATIONS), noise[1]])
    return {name: out.outputs[0].token_ids for name, out in zip(CONVERSATIONS, outputs[1:])}


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """What a monolith on one device answers."""
    with make_llm(checkpoint, "1EPD") as llm:
        alone = {name: answers(llm, params) for name, params in KINDS.items()}
        for name, params in KINDS.items():
            assert answers_in_company(llm, params) == alone[name], name
        assert answers(llm, GREEDY) == alone["greedy"]
        audit(llm._engine.scheduler)
    return alone


def test_answers_are_worth_comparing(reference: dict[str, dict[str, tuple[int, ...]]]) -> None:
    for kind in reference.values():
        assert len(set(kind.values())) == len(kind)
        assert all(len(set(tokens)) > 5 for tokens in kind.values())
        assert all(len(tokens) == 24 for tokens in kind.values())
    assert len({tokens for kind in reference.values() for tokens in kind.values()}) == len(KINDS) * len(CONVERSATIONS)


@pytest.mark.parametrize("mesh", LAYOUTS)
def test_every_mesh_answers_the_same(
    mesh: str, checkpoint: Path, reference: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    with make_llm(checkpoint, mesh) as llm:
        assert answers(llm, GREEDY) == reference["greedy"], "alone, cold"
        assert answers_in_company(llm, GREEDY) == reference["greedy"], "in company"
        for name in ("seeded", "penalised", "everything"):
            assert answers_in_company(llm, KINDS[name]) == reference[name], f"in company, {name}"
        assert answers(llm, GREEDY) == reference["greedy"], "alone, warm"
        assert llm._engine.scheduler.idle
        audit(llm._engine.scheduler)


def test_encoders_without_irp_answer_the_same(
    checkpoint: Path, reference: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    with make_llm(checkpoint, "2E1P1D", irp=False) as llm:
        assert sorted(llm.deployment.instances) == ["i0", "i1", "i2", "i3"]
        assert answers_in_company(llm, GREEDY) == reference["greedy"]
