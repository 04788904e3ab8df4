"""A deployment attends with what was chosen when it was built, says so, and answers the same."""

import logging
from pathlib import Path

import pytest

from epdjax import SamplingParams
from tests.serving.deployments import CONVERSATIONS, make_llm

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SOME = ["many tiles", "long text"]


def answers(folder: Path, mesh: str, attention: str) -> list[tuple[int, ...]]:
    with make_llm(folder, mesh, attention=attention) as llm:
        outputs = llm.chat([CONVERSATIONS[name] for name in SOME], GREEDY)
        if mesh == "1EPD":
            choices = llm.deployment.instances["EPD0"].attention.choices
            assert {role: choice.kernel for role, choice in choices.items()} == dict.fromkeys("EPD", "reference")
        return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> list[tuple[int, ...]]:
    """What a CPU answers when left to itself."""
    return answers(checkpoint, "1EPD", "auto")


@pytest.mark.parametrize("mesh", [pytest.param("1E1P1D", marks=pytest.mark.slow), "1E,1Px2,1Dx2"])
def test_the_paged_kernel_answers_like_the_reference(
    mesh: str, checkpoint: Path, reference: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """The Pallas kernel in real steps, by its interpreter: chunks, company, moved pages, heads over two devices."""
    with caplog.at_level(logging.INFO, "epdjax.serving.attention.seam"):
        assert answers(checkpoint, mesh, "pallas") == reference
    assert sorted((record.levelname, record.getMessage()) for record in caplog.records) == [
        ("INFO", "D0 attends in decode with pallas"),
        ("INFO", "P0 attends in prefill with pallas"),
        ("WARNING", "E0 attends in encode with reference (pallas does not encode on cpu)"),
    ]
