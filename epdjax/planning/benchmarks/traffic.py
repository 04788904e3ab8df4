"""Workloads: what clients ask, and when. Everything comes from one seed."""

import dataclasses
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

WORDS = ("where", "what", "how", "many", "is", "in", "the", "a", "red", "blue", "circle", "square", "picture", "left")


@dataclasses.dataclass(frozen=True)
class Mix:
    """Shares of the kinds of requests, and their sizes.

    Attributes:
        text, one_picture, four_pictures, long_prompt: weights.
        answer: most tokens of an answer, from and to.
        long_words: words of a long prompt.
        pictures: how many different ones there are; few of them means that caches matter.
    """

    text: float = 0.35
    one_picture: float = 0.4
    four_pictures: float = 0.15
    long_prompt: float = 0.1
    answer: tuple[int, int] = (4, 32)
    long_words: int = 250
    pictures: int = 40


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request of a workload.

    Attributes:
        at_s: when it comes, seconds after the start.
        kind: a field of `Mix`.
        messages: OpenAI-style, with decoded pictures.
        max_tokens: of its answer.
        leaves_after: tokens after which the client goes away; None: it stays.
        slow: the client reads hardly faster than it must.
    """

    at_s: float
    kind: str
    messages: list[dict[str, Any]]
    max_tokens: int
    leaves_after: int | None
    slow: bool


def poisson(
    rate: float, seconds: float, seed: int = 0, mix: Mix | None = None, leaving: float = 0.05, slow: float = 0.05
) -> Iterator[Arrival]:
    """An open-loop workload: arrivals do not wait for answers.

    Args:
        rate: requests per second, on average.
        seconds: how long they keep coming.
        mix: kinds and sizes of requests.
        leaving, slow: shares of clients that go away at a random moment, and that read slowly.
    """
    rng, mix = random.Random(seed), mix or Mix()
    kinds = {name: getattr(mix, name) for name in ("text", "one_picture", "four_pictures", "long_prompt")}
    at = rng.expovariate(rate)
    while at < seconds:
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        answer = rng.randint(*mix.answer)
        leaves = rng.randint(0, answer) if rng.random() < leaving else None
        yield Arrival(at, kind, _messages(rng, kind, mix), answer, leaves, rng.random() < slow)
        at += rng.expovariate(rate)


def _messages(rng: random.Random, kind: str, mix: Mix) -> list[dict[str, Any]]:
    count = {"one_picture": 1, "four_pictures": 4}.get(kind, 0)
    words = mix.long_words if kind == "long_prompt" else rng.randint(3, 12)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": _picture(rng.randrange(mix.pictures))} for _ in range(count)
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": " ".join(rng.choices(WORDS, k=words))}]}]


@functools.cache  # hours of arrivals show few pictures
def _picture(number: int) -> Image.Image:
    """Noise of one of a few sizes; the same for the same number."""
    rng = np.random.default_rng(number)
    width, height = ((90, 90), (224, 112), (160, 300), (320, 220))[number % 4]
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
