"""What the caches by content save: time to the first token of what is new, and of what has been seen before."""

import dataclasses
import statistics
import time
from typing import Any

import numpy as np
from PIL import Image

from epdjax.serving.llm import LLM
from epdjax.serving.params import SamplingParams


@dataclasses.dataclass(frozen=True)
class Effect:
    """Median times to the first token, seconds, preparing the prompt included.

    Attributes:
        what: the case.
        new_s: all of it is new. seen_s: the cached part has been seen before.
        prompt_tokens, cached_tokens: of the second.
    """

    what: str
    new_s: float
    seen_s: float
    prompt_tokens: int
    cached_tokens: int


def measure(llm: LLM, side: int = 600, words: int = 300, repeats: int = 9) -> list[Effect]:
    """Ask each thing twice, alone.

    Args:
        llm: an idle engine.
        side: of square pictures, pixels.
        words: of a shared beginning.
        repeats: of each case, every time with other content.
    """
    return [
        _case(llm, "same picture, another question", repeats, lambda i, j: _about(_noise(i, side), f"question {j}?")),
        _case(llm, "same picture, same question", repeats, lambda i, j: _about(_noise(i + 10**6, side), "and this?")),
        _case(llm, "same beginning, another end", repeats, lambda i, j: _words(i, words, f"end {j}")),
    ]


@dataclasses.dataclass(frozen=True)
class Crowd:
    """Many requests about one picture at once.

    Attributes:
        requests: how many.
        units: encode units of the picture. encoded: units that were encoded for all of them together.
        seconds: until all had their first token. alone_s: of one of them, with another picture.
    """

    requests: int
    units: int
    encoded: int
    seconds: float
    alone_s: float


def crowd(llm: LLM, requests: int = 50, side: int = 600) -> Crowd:
    """Ask as many different questions about one new picture at the same time; see `Crowd`."""
    params = SamplingParams(temperature=0, max_tokens=1)
    asked = [_about(_noise(2 * 10**6, side), f"question {i}?") for i in range(requests)]
    units = len(llm.processor.prompt(asked[0]).media[0].units)
    began = time.perf_counter()
    llm.chat(_about(_noise(3 * 10**6, side), "question?"), params)
    alone = time.perf_counter() - began
    before = llm._engine.scheduler.encoding.units_encoded
    began = time.perf_counter()
    llm.chat(asked, params)
    seconds = time.perf_counter() - began
    return Crowd(requests, units, llm._engine.scheduler.encoding.units_encoded - before, seconds, alone)


def _case(llm: LLM, what: str, repeats: int, make: Any) -> Effect:
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for j in range(2):
            began = time.perf_counter()
            output = llm.chat(make(i, j), SamplingParams(temperature=0, max_tokens=1))[0]
            if i:  # the first pair warms up
                times[j].append(time.perf_counter() - began)
    new, seen = (statistics.median(some) for some in times)
    return Effect(what, new, seen, output.prompt_tokens, output.cached_tokens)


def _noise(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def _about(picture: Image.Image, text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]


def _words(seed: int, count: int, end: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    said = " ".join(rng.choice(["where", "what", "circle", "square", "red", "blue", "left", "right"], count))
    return [{"role": "user", "content": f"{said} {end}"}]
