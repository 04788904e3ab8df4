"""What the live engine adds to the steps: its loop is one thread, and where devices are quicker it sets the pace."""

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
            short answer.
    """

    loop_s: float
    answer_s: float


def live_times(config: EngineConfig, checkpoint: Path, dtype: str, repeats: int) -> LiveTimes:
    """Medians over requests to the deployment as it serves.

    Args:
        config: of the engine. checkpoint: that it serves. dtype: of weights and pools.
        repeats: requests of each kind, after one that is not timed.

    Raises:
        ValueError: the deployment cannot be built.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings |= {"model": checkpoint, "dtype": dtype, "role_switching": "off"}
    llm = AsyncLLM(**settings)
    try:
        return asyncio.run(_measure(llm, repeats))
    finally:
        asyncio.run(llm.shutdown(drain=False))
        del llm
        gc.collect()  # its memory is wanted


async def _measure(llm: AsyncLLM, repeats: int) -> LiveTimes:
    short, longer = [await _answer(llm, 1) for _ in range(1 + repeats)], []
    for _ in range(1 + repeats):
        worked = llm._engine.call(time.thread_time)
        _, tokens = await _answer(llm, TOKENS)
        longer.append((llm._engine.call(time.thread_time) - worked) / tokens)
    return LiveTimes(statistics.median(longer[1:]), statistics.median(seconds for seconds, _ in short[1:]))


async def _answer(llm: AsyncLLM, most: int) -> tuple[float, int]:
    """(seconds to the first token, tokens of the answer), which is shorter where contexts are."""
    began, first, tokens = time.perf_counter(), 0.0, 1
    messages = [{"role": "user", "content": "what is"}]
    params = SamplingParams(temperature=0, max_tokens=min(most, llm.max_model_len // 2), ignore_eos=True)
    async for output in llm.generate(messages, params):
        first, tokens = first or time.perf_counter() - began, len(output.outputs[0].token_ids)
    return first, tokens
