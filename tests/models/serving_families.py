"""Serving a family's tiny checkpoint: few shapes, so that an engine is ready in seconds."""

from pathlib import Path
from typing import Any

from epdjax import LLM, SamplingParams
from epdjax.models import config_of
from epdjax.serving.buckets import Buckets

CONTEXT, NEW_TOKENS = 512, 32


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


def answers(folder: Path, mesh: str, conversations: dict[str, list[dict[str, Any]]]) -> dict[str, list[int]]:
    """Greedy tokens of all conversations, served together."""
    with LLM(folder, mesh, buckets=small_buckets(folder), max_model_len=CONTEXT, dtype="float32") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
        outputs = llm.chat(list(conversations.values()), params)
    return {name: list(out.outputs[0].token_ids) for name, out in zip(conversations, outputs, strict=True)}
