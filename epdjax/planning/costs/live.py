"""What the live engine adds to the steps: its loop is one thread, and where devices are quicker it sets the pace; and a
step that another thread starts and waits for takes longer than one that is called again and again."""

import asyncio
import dataclasses
import gc
import statistics
import time
from pathlib import Path

from epdjax.serving.config import EngineConfig
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.params import SamplingParams

TOKENS = 64  # of a longer answer


@dataclasses.dataclass(frozen=True)
class LiveTimes:
    """A deployment that serves one short question at a time.

    Attributes:
        loop_s: that the engine's thread works per decode step. answer_s: from a client's call to the only token of a
            short answer. pace_s: from one token to the next.
    """

    loop_s: float
    answer_s: float
    pace_s: float


def live_times(config: EngineConfig, checkpoint: Path, dtype: str, repeats: int, least_s: float) -> LiveTimes:
    """Medians over requests to the deployment as it serves.

    Args:
        config: of the engine. checkpoint: that it serves. dtype: of weights and pools.
        repeats: requests of each kind, in turns, after one that is not timed. least_s: that they go on for at least.

    Raises:
        ValueError: the deployment cannot be built.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings |= {"model": checkpoint, "dtype": dtype, "role_switching": "off"}
    llm = AsyncLLM(**settings)
    try:
        return asyncio.run(_measure(llm, repeats, least_s))
    finally:
        asyncio.run(llm.shutdown(drain=False))
        del llm
        gc.collect()  # its memory is wanted


async def _measure(llm: AsyncLLM, repeats: int, least_s: float) -> LiveTimes:
    firsts: list[float] = []
    loops: list[float] = []
    paces: list[float] = []
    await _answer(llm, TOKENS)
    began = time.perf_counter()
    while len(loops) < repeats or time.perf_counter() - began < least_s:
        firsts.append((await _answer(llm, 1)).first_s)
        worked = llm._engine.call(time.thread_time)
        answer = await _answer(llm, TOKENS)
        loops.append((llm._engine.call(time.thread_time) - worked) / answer.tokens)
        paces.append((answer.last_s - answer.first_s) / max(1, answer.tokens - 1))
    return LiveTimes(statistics.median(loops), statistics.median(firsts), statistics.median(paces))


@dataclasses.dataclass(frozen=True)
class _Answer:
    """Seconds to its first and its last token, and how many it has, fewer where contexts are short."""

    first_s: float
    last_s: float
    tokens: int


async def _answer(llm: AsyncLLM, most: int) -> _Answer:
    began, first_s, last_s, tokens = time.perf_counter(), 0.0, 0.0, 1
    messages = [{"role": "user", "content": "what is"}]
    params = SamplingParams(temperature=0, max_tokens=min(most, llm.max_model_len // 2), ignore_eos=True)
    async for output in llm.generate(messages, params):
        last_s, tokens = time.perf_counter() - began, len(output.outputs[0].token_ids)
        first_s = first_s or last_s
    return _Answer(first_s, last_s, tokens)
