"""The pace of running answers while others prefill long prompts and encode large pictures: what a stall looks like to
the one who reads along."""

import asyncio
import contextlib
import dataclasses
import math
import random
import string
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.random_checkpoint import InternVLSize
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.params import SamplingParams

# A long prefill takes seconds on two CPU cores, a decode step milliseconds.
SIZE = InternVLSize(
    vision_layers=6, vision_width=384, text_layers=4, text_width=384, text_heads=6, text_mlp=1024, vocab=8000
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """An engine to measure: its mesh spec, and prompt tokens per prefill step.

    Where a step takes a whole prompt, others wait for it, and for all tiles of a picture: the old way.
    """

    mesh: str
    max_chunk: int


@dataclasses.dataclass(frozen=True)
class Gaps:
    """Seconds between the tokens of the running answers, as their readers see them: tokens that come together have one
    gap before them and none between them."""

    p50: float
    p99: float
    longest: float
    tokens: int

    @classmethod
    def of(cls, gaps_s: list[float]) -> "Gaps":
        p50, p99 = (float(np.percentile(gaps_s, q)) for q in (50, 99)) if gaps_s else (float("nan"),) * 2
        return cls(p50, p99, max(gaps_s, default=float("nan")), len(gaps_s))


@dataclasses.dataclass(frozen=True)
class Pace:
    """What running answers see of others.

    Attributes:
        alone: the running answers by themselves. beside: while others prefill and encode.
        prompts, pictures: of others, answered meanwhile. prompt_s, picture_s: how long one took, on average.
        prompt_tokens: of one prompt.
    """

    alone: Gaps
    beside: Gaps
    prompts: int
    pictures: int
    prompt_s: float
    picture_s: float
    prompt_tokens: int


def make_engine(folder: Path, layout: Layout, prompt_tokens: int, streams: int, progress: Any = None) -> AsyncLLM:
    """An engine with room for the prompts of others beside answers that do not end meanwhile."""
    pace = {"decode_pace": math.inf} if layout.max_chunk >= prompt_tokens else {}
    return AsyncLLM(
        folder,
        layout.mesh,
        progress=progress,
        **pace,
        max_chunk=layout.max_chunk,
        max_model_len=prompt_tokens + 2048,
        max_seqs=streams + 2,
        buckets="trimmed",
    )


async def measure_pace(llm: AsyncLLM, streams: int, seconds: float, prompt_tokens: int, tiles: int) -> Pace:
    """Let `streams` answers run, first alone, then beside others.

    Args:
        llm: an idle engine.
        seconds: of each of the two parts; the second lasts until a prompt and a picture have been answered.
        prompt_tokens: about how many the prompts of others have; one after another is sent.
        tiles: of the pictures of others, likewise; 0 for none.
    """
    rng, gaps = random.Random(0), _Recorder()
    words = _words(llm, prompt_tokens)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_stream(llm, _text(rng, 20), gaps)) for _ in range(streams)]
        await gaps.all_running(streams)
        gaps.take()
        await asyncio.sleep(seconds)
        alone = gaps.take()
        until = time.monotonic() + seconds
        others = [group.create_task(_others(llm, until, lambda: _text(rng, words)))]
        if tiles:
            others.append(group.create_task(_others(llm, until, lambda: _picture(rng, llm, tiles))))
        done = await asyncio.gather(*others)
        beside = gaps.take()
        for task in running:
            task.cancel()
    prompts, pictures = done[0], done[1] if tiles else []
    return Pace(
        Gaps.of(alone),
        Gaps.of(beside),
        len(prompts),
        len(pictures),
        _mean_seconds(prompts),
        _mean_seconds(pictures),
        prompts[0][1],
    )


def _mean_seconds(done: list[tuple[float, int]]) -> float:
    return float(np.mean([seconds for seconds, _ in done])) if done else float("nan")


class _Recorder:
    """Gaps of all streams together."""

    def __init__(self) -> None:
        self._gaps_s: list[float] = []
        self._running = 0
        self._changed = asyncio.Condition()

    def take(self) -> list[float]:
        taken, self._gaps_s = self._gaps_s, []
        return taken

    def arrived(self, tokens: int, gap_s: float) -> None:
        self._gaps_s += [gap_s] + [0.0] * (tokens - 1)

    async def begun(self) -> None:
        async with self._changed:
            self._running += 1
            self._changed.notify_all()

    async def all_running(self, streams: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._running >= streams)


async def _stream(llm: AsyncLLM, messages: list[dict[str, Any]], gaps: _Recorder) -> None:
    """Answers as long as the context allows, one after another, until it is cancelled."""
    first = True
    while True:
        tokens, last = 0, 0.0
        params = SamplingParams(temperature=0, ignore_eos=True)
        async with contextlib.aclosing(_generate(llm, messages, params)) as outputs:
            async for output in outputs:
                now, count = time.monotonic(), len(output.outputs[0].token_ids)
                if tokens and count > tokens:
                    gaps.arrived(count - tokens, now - last)
                last, tokens = now, count
                if first:
                    first = False
                    await gaps.begun()


async def _others(llm: AsyncLLM, until: float, make: Any) -> list[tuple[float, int]]:
    """One request after another, each new, for one token; (seconds, prompt tokens) of each."""
    done: list[tuple[float, int]] = []
    while not done or time.monotonic() < until:
        messages, began = make(), time.monotonic()
        async with contextlib.aclosing(_generate(llm, messages, SamplingParams(temperature=0, max_tokens=1))) as outs:
            async for output in outs:
                tokens = output.prompt_tokens
        done.append((time.monotonic() - began, tokens))
    return done


def _generate(llm: AsyncLLM, messages: list[dict[str, Any]], params: SamplingParams) -> Any:
    outputs: AsyncIterator[Any] = llm.generate(messages, params)
    return outputs


def _text(rng: random.Random, words: int) -> list[dict[str, Any]]:
    said = " ".join("".join(rng.choices(string.ascii_lowercase, k=2)) for _ in range(words))
    return [{"role": "user", "content": said}]


def _words(llm: AsyncLLM, tokens: int) -> int:
    """How many random words make about so many tokens."""
    few, many = (len(llm.processor.prompt(_text(random.Random(0), words)).token_ids) for words in (0, 1000))
    return max(1, 1000 * (tokens - few) // (many - few))


def _picture(rng: random.Random, llm: AsyncLLM, tiles: int) -> list[dict[str, Any]]:
    """Noise, `tiles` times as wide as it is high, so that it is cut into as many tiles."""
    side = llm.deployment.model.vision.image_size
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (side, tiles * side, 3), np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(noise)}, {"type": "text", "text": "what is it"}]
    return [{"role": "user", "content": parts}]
