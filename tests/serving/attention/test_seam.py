"""A deployment attends with what was chosen when it was built, says so, and answers the same."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from epdjax import SamplingParams
from epdjax.mesh.sharding import Submesh
from epdjax.models import config_of
from epdjax.serving.attention import pallas_gpu, seam
from tests.serving.deployments import BUCKETS, CONVERSATIONS, make_llm

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
FEW = dataclasses.replace(BUCKETS, units=(4,), prefill=((1, 64),), decode_rows=(2,), move_blocks=(16,))
SOME = ["many tiles", "long text"]


def answers(folder: Path, mesh: str, attention: str) -> list[tuple[int, ...]]:
    with make_llm(folder, mesh, attention=attention, buckets=FEW) as llm:
        outputs = llm.chat([CONVERSATIONS[name] for name in SOME], GREEDY)
        if mesh == "1EPD":
            choices = llm.deployment.instances["i0"].attention.choices
            expected = "rowwise" if attention == "auto" else attention
            assert {role: choice.kernel for role, choice in choices.items()} == dict.fromkeys("EPD", expected)
        return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> list[tuple[int, ...]]:
    """What the reference answers."""
    return answers(checkpoint, "1EPD", "reference")


def test_a_cpu_left_to_itself_answers_like_the_reference(checkpoint: Path, reference: list[tuple[int, ...]]) -> None:
    assert answers(checkpoint, "1EPD", "auto") == reference


@pytest.mark.parametrize("mesh", ["1E,1PDx2", pytest.param("1E1P1D", marks=pytest.mark.slow)])
def test_the_paged_kernel_answers_like_the_reference(
    mesh: str, checkpoint: Path, reference: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """The Pallas kernel in real steps, by its interpreter: chunks, company, moved pages, heads over two devices."""
    with caplog.at_level(logging.INFO, "epdjax.serving.attention.seam"):
        assert answers(checkpoint, mesh, "pallas") == reference
    pages = {"P": "i1", "D": "i2"} if mesh == "1E1P1D" else {"P": "i1", "D": "i1"}
    assert {(record.levelname, record.getMessage()) for record in caplog.records} == {
        ("INFO", f"{pages['D']} attends in decode with pallas"),
        ("INFO", f"{pages['P']} attends in prefill with pallas"),
        ("WARNING", "i0 attends in encode with reference (pallas does not encode on cpu)"),
    }


def chosen(folder: Path, roles: str = "PD") -> seam.Attention:
    """What an instance on one CPU device gets that asks for the paged kernel."""
    seam.tried.cache_clear()
    submesh = Submesh.of(jax.devices()[:1])
    return seam.Attention.of("pallas", roles, submesh, config_of(folder), jnp.float32, block_size=16)


def test_a_kernel_is_tried_before_it_is_used(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {choice.kernel for choice in chosen(checkpoint).choices.values()} == {"pallas"}

    right = pallas_gpu.reads
    with monkeypatch.context() as patch:  # it sees a key too few
        patch.setattr(pallas_gpu, "reads", lambda *rows: (*right(*rows)[:2], right(*rows)[2] - 1))
        wrong = chosen(checkpoint)
    assert {choice.kernel for choice in wrong.choices.values()} == {"reference"}
    assert "pallas differs from the reference by" in wrong.choices["D"].refusals[-1]

    def broken(*rows: object) -> None:
        raise RuntimeError("no such instruction\nand much more")

    with monkeypatch.context() as patch:
        patch.setattr(pallas_gpu, "reads", broken)
        failed = chosen(checkpoint, "D")
    assert failed.choices["D"].refusals == ("pallas fails on this device: no such instruction",)
    seam.tried.cache_clear()
