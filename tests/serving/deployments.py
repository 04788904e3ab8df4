"""Small deployments of a tiny model, for tests that run the whole engine."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from epdjax import LLM
from epdjax.serving.buckets import Buckets

# Few shapes, so that a deployment starts in seconds: prompts of up to 64 (or two of 128) tokens a step, 256 in all.
BUCKETS = Buckets(
    units=(2, 4),
    prefill=((1, 64), (2, 128)),
    prefill_pages=(16,),
    decode_rows=(2, 6),
    decode_pages=(16,),
    move_blocks=(4, 16),
)
SETTINGS: dict[str, Any] = {"buckets": BUCKETS, "max_model_len": 256}


def make_llm(folder: Any, mesh: str, **settings: Any) -> LLM:
    return LLM(folder, mesh, **(SETTINGS | settings))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, so that every tile of every picture is different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, *pictures: Image.Image) -> list[dict[str, Any]]:
    """A one-turn conversation about some pictures."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


CONVERSATIONS = {
    "text only": ask("hello there"),
    "one tile": ask("the cat?", picture(20, 20, 1)),
    "many tiles": ask("the cat?", picture(60, 40, 2)),
    "two pictures": ask("and?", picture(60, 40, 2), picture(30, 90, 3)),
    "long text": ask("in the tan hat " * 8),
}


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits for something that another thread does, without taking the processor from it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
