"""What the live engine adds to the steps: its loop is one thread, and where devices are quicker it sets the pace; and a
step that another thread starts and waits for takes longer than one that is called again and again."""

import asyncio
import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.planning.costs.engine_clock import EngineClock, Waited
from epdjax.planning.costs.profile import LoopTimes
from epdjax.serving.config import EngineConfig
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.params import SamplingParams
from epdjax.serving.work import Prefill

TOKENS = 12  # of a longer answer: steps get quicker over some 25 of them, and hardly any answer is left alone so long
PICTURE = 64  # pixels, across and down
TURNS = 3  # at least


@dataclasses.dataclass(frozen=True)
class LiveTimes:
    """A deployment that serves one request at a time.

    Attributes:
        loop: what its loop takes, by the kind of work; see `Overhead`.
        waited: for all its work.
        pace_s: from one token of an answer to the next, once it decodes.
        request_s: from a client's call, without pictures, to the start of its prefill.
        token_s: that the clients' thread works for a token.
    """

    loop: dict[str, LoopTimes]
    waited: tuple[Waited, ...]
    pace_s: float
    request_s: float
    token_s: float


def live_times(config: EngineConfig, checkpoint: Path, dtype: str, least_s: float) -> LiveTimes:
    """Of a deployment that is made for this and ended again.

    Args:
        config: of the engine. checkpoint: that it serves. dtype: of weights and pools.
        least_s: see `measure_live`.

    Raises:
        ValueError: the deployment cannot be built.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings |= {"model": checkpoint, "dtype": dtype, "role_switching": "off"}
    llm = AsyncLLM(**settings)
    try:
        return asyncio.run(measure_live(llm, least_s))
    finally:
        asyncio.run(llm.shutdown(drain=False))
        del llm
        gc.collect()  # its memory is wanted


async def measure_live(llm: AsyncLLM, least_s: float) -> LiveTimes:
    """Means over requests to an engine that has nothing else to do: in turns one about a picture that it has not seen,
    if it takes pictures, a short and a long one.

    Args:
        least_s: that they go on for at least.
    """
    engine, looks = llm._engine, "image" in llm.processor.placeholders
    noise = np.random.default_rng(time.time_ns())

    async def turn(clock: EngineClock) -> tuple[float, float, float]:
        if looks:
            pixels = noise.integers(0, 256, (PICTURE, PICTURE, 3), np.uint8)
            await _answer(llm, 2, [{"type": "image", "image": Image.fromarray(pixels)}])
        seen = len(clock.waited)
        short = await _answer(llm, 1)
        request_s = short.first_s - next(w.seconds for w in clock.waited[seen:] if isinstance(w.work, Prefill))
        worked = time.thread_time()
        long = await _answer(llm, TOKENS)
        token_s = (time.thread_time() - worked) / long.tokens
        return long.pace_s, request_s, token_s

    clock = engine.call(functools.partial(EngineClock, engine))
    try:
        await turn(clock)
        engine.call(clock.reset)
        began = time.perf_counter()
        turns: list[tuple[float, float, float]] = []
        while len(turns) < TURNS or time.perf_counter() - began < least_s:
            turns.append(await turn(clock))
        loop = engine.call(clock.loop)
    finally:
        engine.call(clock.stop)
    pace_s, request_s, token_s = (statistics.mean(some) for some in zip(*turns))
    request_s = max(0.0, request_s - loop["prefill"].start - loop["prefill"].end - token_s)
    return LiveTimes(loop, tuple(clock.waited), pace_s, request_s, token_s)


@dataclasses.dataclass(frozen=True)
class _Answer:
    """Seconds to its first token, how many it has, fewer where contexts are short, and seconds between those that
    decode steps made: to the first of them KV may have had to move."""

    first_s: float
    tokens: int
    pace_s: float


async def _answer(llm: AsyncLLM, most: int, media: Sequence[dict[str, Any]] = ()) -> _Answer:
    began, seen = time.perf_counter(), []
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": "what is"}]}]
    params = SamplingParams(temperature=0, max_tokens=min(most, llm.max_model_len // 2), ignore_eos=True)
    async for output in llm.generate(messages, params):
        seen.append((time.perf_counter() - began, len(output.outputs[0].token_ids)))
    last_s, tokens = seen[-1]
    second_s, so_far = next(((at_s, count) for at_s, count in seen if count > 1), seen[-1])
    return _Answer(seen[0][0], tokens, (last_s - second_s) / max(1, tokens - so_far))
