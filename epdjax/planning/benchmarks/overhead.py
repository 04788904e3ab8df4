"""What the engine costs beside the compiled steps: wall time of decode steps over the bare program's, the scheduler's
own time, and pauses of the garbage collector."""

import contextlib
import dataclasses
import gc
import statistics
import threading
import time
from collections.abc import Iterator

import numpy as np

from epdjax.models.media import Prompt
from epdjax.models.random_checkpoint import InternVLSize
from epdjax.planning.benchmarks.bare import time_step
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import default_buckets, smallest
from epdjax.serving.content import content_keys
from epdjax.serving.errors import RequestError
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.llm import LLM
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams
from epdjax.serving.preparing import Prepared
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler

# A decode step takes some 10 ms on two CPU cores.
SIZE = InternVLSize(
    vision_layers=1, vision_width=64, vision_heads=2, text_layers=8, text_width=640, text_heads=10, text_mlp=1728
)
PROMPT = 40  # tokens; with the answer it stays within the smallest bucket of pages


@dataclasses.dataclass(frozen=True)
class StepCost:
    """A decode step of `batch` sequences.

    Attributes:
        engine_s: wall time from step to step while nothing else runs. bare_s: of the same program alone.
        gc_s, gc_longest_s: pauses of the garbage collector per step, and the longest.
    """

    batch: int
    engine_s: float
    bare_s: float
    gc_s: float
    gc_longest_s: float

    @property
    def ratio(self) -> float:
        """Of the engine's step to the bare one."""
        return self.engine_s / self.bare_s


def measure_decode(llm: LLM, batch: int, tokens: int = 128, repeats: int = 3) -> StepCost:
    """Let `batch` answers run to `tokens` tokens, and the bare program of their step as often, in turns.

    Args:
        llm: idle, on one instance that does everything.

    Raises:
        ValueError: it has no room for all of them at once.
    """
    (instance,) = llm.deployment.instances.values()
    buckets = llm.deployment.scheduling.buckets
    pages = smallest(buckets.decode_pages, -(-(PROMPT + tokens) // instance.block_size))
    key = ("decode", (smallest(buckets.decode_rows, batch), pages))
    rounds = []
    for number in range(1 + repeats):
        with _gc_pauses() as pauses:
            seconds, steps = _run(llm, batch, tokens, seed=number)
        rounds.append(
            (seconds / steps, time_step(instance, key, repeats=20), sum(pauses) / steps, max(pauses, default=0))
        )
    engine, bare, paused, longest = zip(*rounds[1:])
    return StepCost(batch, statistics.median(engine), statistics.median(bare), statistics.median(paused), max(longest))


def _run(llm: LLM, batch: int, tokens: int, seed: int) -> tuple[float, int]:
    """(seconds, decode steps) between the first token of the last answer to begin and the end of the first."""
    times: list[list[float]] = [[] for _ in range(batch)]
    left = threading.Semaphore(0)
    rng = np.random.default_rng(seed)
    requests = []
    for row in range(batch):

        def sink(output: RequestOutput | RequestError, row: int = row) -> None:
            times[row].append(time.perf_counter())
            if isinstance(output, RequestError) or output.finished:
                left.release()

        prompt = Prompt(rng.integers(0, 256, PROMPT).astype(np.int32), np.zeros(0, np.int32), ())
        keys = content_keys(prompt, llm.deployment.scheduling.block_size)
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        requests.append(llm._request(None, Prepared(prompt, keys), params, sink))
    for request in requests:
        llm._engine.submit(request)
    for _ in requests:
        left.acquire()
    began, ended = max(some[0] for some in times), min(some[-1] for some in times)
    if ended <= began:
        raise ValueError(f"{batch} answers do not run at once here; give more slots or KV blocks, or longer answers")
    steps = min(sum(began < at <= ended for at in some) for some in times)
    return ended - began, max(1, steps)


@contextlib.contextmanager
def _gc_pauses() -> Iterator[list[float]]:
    """Seconds of each collection inside."""
    pauses: list[float] = []
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(note)


@dataclasses.dataclass(frozen=True)
class SchedulerCost:
    """Time of the pure scheduler on work that is done at once.

    Attributes:
        request_s: all of its time, per request. step_s: per work.
        requests, works: how many there were.
    """

    request_s: float
    step_s: float
    requests: int
    works: int


def measure_scheduler(
    roles: tuple[str, ...], requests: int = 500, running: int = 64, tokens: int = 64
) -> SchedulerCost:
    """Drive a scheduler over `requests` requests, `running` of them at a time, with devices that take no time.

    Every third has a picture of 7 tiles.

    Args:
        roles: of each instance, such as ``("E", "P", "D")``.
    """
    block, longest = 16, 2048
    config = SchedulerConfig(
        buckets=default_buckets(max_model_len=longest, block_size=block, max_chunk=512, max_seqs=running, max_units=8),
        block_size=block,
        mm_block_size=64,
        max_model_len=longest,
    )
    room = running * longest // block
    scheduler = Scheduler(
        config,
        [
            InstanceSpec(f"{some}{i}", some, kv_blocks=room, mm_blocks=16 * running, slots=running, encode_width=1)
            for i, some in enumerate(roles)
        ],
    )
    specs = [_spec(number, tokens) for number in range(requests)]
    spent, works = 0.0, 0
    waiting = iter(specs)
    while True:
        began = time.perf_counter()
        while len(scheduler.requests) < running and (spec := next(waiting, None)) is not None:
            scheduler.add(spec, 0.0)
        started = scheduler.next_work(0.0)
        for work in started:
            scheduler.finished(work, 0.0)
        spent += time.perf_counter() - began
        works += len(started)
        if not started and not scheduler.requests:
            return SchedulerCost(spent / requests, spent / works, requests, works)


def _spec(number: int, tokens: int) -> RequestSpec:
    tiles = 7 if number % 3 == 0 else 0
    prompt = 100 + 64 * tiles
    return RequestSpec(
        f"request-{number}",
        prompt_tokens=prompt,
        max_tokens=tokens,
        unit_tokens=(64,) * tiles,
        unit_keys=tuple((number, tile) for tile in range(tiles)),
        unit_starts=tuple(4 + 64 * tile for tile in range(tiles)),
        block_keys=tuple((number, "block", block) for block in range(prompt // 16)),
    )
