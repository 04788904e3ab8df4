"""Serving a family's tiny checkpoint: few shapes, so that an engine is ready in seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from epdjax import LLM, SamplingParams
from epdjax.models import config_of
from epdjax.serving.buckets import Buckets

CONTEXT, NEW_TOKENS = 512, 32
MESHES, OTHER_MESH = ("1EPD", "1E1P1D", "1E1Px2,1Dx2"), "2E1P1D"  # of a family's first variant, and of the others


def small_buckets(folder: Path) -> Buckets:
    """Two unit sizes at most, prompts in chunks."""
    sizes = config_of(folder).unit_sizes(CONTEXT)
    return Buckets(
        units=(2,),
        prefill=((1, 128), (2, 64)),
        prefill_pages=(32,),
        decode_rows=(6,),
        decode_pages=(32,),
        move_blocks=(32,),
        unit_sizes=tuple(sorted({sizes[0], sizes[-1]})),
    )


def describe(
    record_property: Callable[[str, object], None], module: ModuleType, variant: str, judge: str, meshes: Sequence[str]
) -> None:
    """Say in the test report what a test covers, for `support_matrix`."""
    turns = [turn["content"] for said in module.conversations().values() for turn in said]
    kinds = {"text" if isinstance(part, str) else part["type"] for content in turns for part in content}
    record_property("family", module.MODEL_TYPE)
    record_property("variant", variant)
    record_property("judge", judge)
    record_property("modalities", " ".join(sorted(kinds)))
    record_property("meshes", " ".join(meshes))


def answers(folder: Path, mesh: str, conversations: dict[str, list[dict[str, Any]]]) -> dict[str, list[int]]:
    """Greedy tokens of all conversations, served together."""
    with LLM(folder, mesh, buckets=small_buckets(folder), max_model_len=CONTEXT, dtype="float32") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
        outputs = llm.chat(list(conversations.values()), params)
    return {name: list(out.outputs[0].token_ids) for name, out in zip(conversations, outputs, strict=True)}
