"""Driving an engine with a workload, and saying what came of it: latencies, losses, leaks, and wrong answers."""

import asyncio
import dataclasses
import hashlib
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epdjax.planning.benchmarks.traffic import Arrival
from epdjax.serving.audit import audit
from epdjax.serving.errors import RequestError
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.params import SamplingParams


@dataclasses.dataclass
class Outcome:
    """What became of one request: ``answered``, ``left`` (its client), or the code of an error."""

    arrival: Arrival
    end: str = "lost"
    ttft_s: float | None = None
    gaps_s: list[float] = dataclasses.field(default_factory=list)
    token_ids: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """A run's outcomes and what was left behind.

    Attributes:
        ends: outcomes by kind. `lost` must not occur.
        ttft_s, tpot_s: (median, 99th percentile) over answered requests, seconds.
        wrong: answered requests whose tokens differ from those of the same prompt alone.
        compared: how many were compared.
        blocks_held, tasks_left: after the last request ended.
        preemptions: sequences that had to make room for others.
        rss_mib: memory of this process, medians over the second fifth of the time and over the last one.
        seconds: from the first arrival to the last end.
    """

    ends: dict[str, int]
    ttft_s: tuple[float, float]
    tpot_s: tuple[float, float]
    wrong: int
    compared: int
    blocks_held: int
    tasks_left: int
    preemptions: int
    rss_mib: tuple[float, float]
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing was lost, left behind, or answered differently."""
        return not (self.ends.get("lost") or self.wrong or self.blocks_held or self.tasks_left)


async def run(llm: AsyncLLM, arrivals: Sequence[Arrival], compare: int = 40, seed: int = 0) -> LoadReport:
    """Send a workload and wait for its end.

    Args:
        llm: the engine; idle, and served by the running event loop.
        arrivals: in order of time.
        compare: of the answered requests, so many are asked again, one at a time, and have to give the same tokens.
    """
    before = len(asyncio.all_tasks())
    began = time.monotonic()
    outcomes = [Outcome(arrival) for arrival in arrivals]
    preemptions = llm._engine.scheduler.preemptions
    rss = [_rss_mib()]
    watcher = asyncio.create_task(_watch(rss))
    async with asyncio.TaskGroup() as group:
        for outcome in outcomes:
            await asyncio.sleep(max(0.0, began + outcome.arrival.at_s - time.monotonic()))
            group.create_task(_client(llm, outcome))
    seconds = time.monotonic() - began
    watcher.cancel()
    await asyncio.wait([watcher])
    preemptions = llm._engine.scheduler.preemptions - preemptions
    held = await _blocks_held(llm)
    answered = [outcome for outcome in outcomes if outcome.end == "answered"]
    sample = random.Random(seed).sample(answered, min(compare, len(answered)))
    wrong = 0
    for outcome in sample:
        alone = Outcome(dataclasses.replace(outcome.arrival, leaves_after=None, slow=False))
        await _client(llm, alone)
        wrong += alone.token_ids != outcome.token_ids
    ends: dict[str, int] = {}
    for outcome in outcomes:
        ends[outcome.end] = ends.get(outcome.end, 0) + 1
    return LoadReport(
        ends=ends,
        ttft_s=_percentiles([o.ttft_s for o in answered if o.ttft_s is not None]),
        tpot_s=_percentiles([gap for o in answered if not o.arrival.slow for gap in o.gaps_s]),
        wrong=wrong,
        compared=len(sample),
        blocks_held=held,
        tasks_left=len(asyncio.all_tasks()) - before,
        preemptions=preemptions,
        rss_mib=(_median(rss[len(rss) // 5 : -(-2 * len(rss) // 5)]), _median(rss[4 * len(rss) // 5 :])),
        seconds=seconds,
    )


async def _client(llm: AsyncLLM, outcome: Outcome) -> None:
    arrival, began = outcome.arrival, time.monotonic()
    params = SamplingParams(temperature=0, max_tokens=arrival.max_tokens, ignore_eos=True)
    stream: Any = llm.generate(arrival.messages, params)
    last = began
    try:
        if arrival.leaves_after == 0:
            outcome.end = "left"
            return
        async for output in stream:
            now, tokens = time.monotonic(), output.outputs[0].token_ids
            if outcome.ttft_s is None:
                outcome.ttft_s = now - began
            elif len(tokens) > len(outcome.token_ids):
                outcome.gaps_s.append((now - last) / (len(tokens) - len(outcome.token_ids)))
            last, outcome.token_ids = now, tokens
            if arrival.leaves_after is not None and len(tokens) >= arrival.leaves_after:
                outcome.end = "left"
                return
            if arrival.slow:
                await asyncio.sleep(0.2)
            if output.finished:
                outcome.end = "answered"
    except RequestError as error:
        outcome.end = error.code
    finally:
        await stream.aclose()


async def _blocks_held(llm: AsyncLLM, patience_s: float = 30.0) -> int:
    """Blocks that requests hold once the engine is idle; all, if it does not become idle."""
    scheduler = llm._engine.scheduler
    deadline = time.monotonic() + patience_s
    while not scheduler.idle and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if scheduler.idle:
        audit(scheduler)
    return sum(pool.held for ledger in scheduler.instances.values() for pool in ledger.pools.values())


async def _watch(rss: list[float], every_s: float = 1.0) -> None:
    """Note the memory of this process until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        rss.append(_rss_mib())


def _rss_mib() -> float:
    """Memory of this process now; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return (float("nan"), float("nan"))
    return (float(np.percentile(values, 50)), float(np.percentile(values, 99)))


def fingerprint(arrivals: Sequence[Arrival]) -> str:
    """A short name for a workload, to tell whether two runs had the same."""
    digest = hashlib.blake2b(digest_size=6)
    for arrival in arrivals:
        digest.update(f"{arrival.at_s:.6f} {arrival.kind} {arrival.max_tokens} {arrival.leaves_after};".encode())
    return digest.hexdigest()
