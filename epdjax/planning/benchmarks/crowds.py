"""What an event costs the scheduler while many requests wait: seconds, or bytecodes, which come out the same each time.

The scheduler runs on the engine's one thread, so while it thinks about a role switch, a lost instance or a thousand
clients that leave, nothing is dispatched.
"""

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import default_buckets
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler

LAYOUT = ("E", "E", "P", "P", "D", "D")
UNITS, UNIT_TOKENS = 8, 16  # of each request
TEXT_TOKENS = 32  # before its media
STEPS = 40  # of `next_work`

Meter = Callable[[], "contextlib.AbstractContextManager[list[float]]"]
"""What is spent inside: one number, there when the block has ended."""


@dataclasses.dataclass(frozen=True)
class Crowd:
    """Requests that wait.

    Attributes:
        requests: how many.
        roomy: all their units are queued to be encoded; else most requests wait for room for their MM tokens.
        media: they have any; else they wait to be prefilled.
        shared: all show the same pictures.
    """

    requests: int
    roomy: bool = True
    media: bool = True
    shared: bool = False

    def scheduler(self) -> Scheduler:
        """One that they wait in, and that has all its devices busy."""
        longest = 512
        config = SchedulerConfig(
            buckets=default_buckets(max_model_len=longest, block_size=16, max_chunk=256, max_seqs=16, max_units=8),
            mm_block_size=UNIT_TOKENS,
            max_model_len=longest,
            max_requests=max(1024, self.requests),
            max_queued_units=max(8192, UNITS * self.requests),
        )
        blocks = UNITS * self.requests if self.roomy else 64
        sizes = {"kv_blocks": 512, "mm_blocks": blocks, "slots": 16, "encode_width": 1}
        scheduler = Scheduler(config, [InstanceSpec(f"{r}{i}", r, **sizes) for i, r in enumerate(LAYOUT)])
        for number in range(self.requests):
            scheduler.add(self._spec(number), 0.0)
        scheduler.next_work(0.0)
        return scheduler

    def _spec(self, number: int) -> RequestSpec:
        units = UNITS if self.media else 0
        return RequestSpec(
            f"request-{number}",
            prompt_tokens=TEXT_TOKENS + units * UNIT_TOKENS,
            max_tokens=32,
            unit_tokens=(UNIT_TOKENS,) * units,
            unit_keys=tuple((0 if self.shared else number, unit) for unit in range(units)),
            unit_starts=tuple(TEXT_TOKENS + UNIT_TOKENS * unit for unit in range(units)),
        )


CROWDS: dict[str, Callable[[int], Crowd]] = {
    "pictures, queued to be encoded": Crowd,
    "pictures, waiting for room": lambda requests: Crowd(requests, roomy=False),
    "the same pictures in all": lambda requests: Crowd(requests, shared=True),
    "texts": lambda requests: Crowd(requests, media=False),
}


def an_encoder_changes_over(scheduler: Scheduler) -> None:
    """It comes to decode: what is queued there goes to the other."""
    _switch(scheduler, "E0", "E")


def both_encoders_change_over(scheduler: Scheduler) -> None:
    """Nobody encodes any more: what is queued waits for one that will."""
    scheduler.roles.offload("E1", "E", keeps_kv=False)
    _switch(scheduler, "E0", "E")


def a_prefiller_changes_over(scheduler: Scheduler) -> None:
    """It comes to decode: requests that wait for it start over at the other."""
    _switch(scheduler, "P2", "P")


def _switch(scheduler: Scheduler, name: str, roles: str) -> None:
    scheduler.roles.offload(name, roles, keeps_kv=False)
    scheduler.next_work(0.0)
    scheduler.roles.is_evacuated(name)
    scheduler.next_work(0.0)


def an_encoder_is_lost(scheduler: Scheduler) -> None:
    scheduler.roles.take_out("E0", 0.0)
    scheduler.next_work(0.0)


def a_prefiller_is_lost(scheduler: Scheduler) -> None:
    scheduler.roles.take_out("P2", 0.0)
    scheduler.next_work(0.0)


def all_leave(scheduler: Scheduler) -> None:
    """The first come goes first; what each leaves behind is tidied up before the next."""
    for name in list(scheduler.requests):
        scheduler.abort(name, 0.0)
        scheduler.next_work(0.0)


EVENTS: dict[str, Callable[[Scheduler], None]] = {
    "an encoder changes over": an_encoder_changes_over,
    "both encoders change over": both_encoders_change_over,
    "a prefill instance changes over": a_prefiller_changes_over,
    "an encoder is lost": an_encoder_is_lost,
    "a prefill instance is lost": a_prefiller_is_lost,
    "all leave": all_leave,
}


@contextlib.contextmanager
def seconds() -> Iterator[list[float]]:
    """A meter of time; the garbage collector waits meanwhile."""
    spent: list[float] = []
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    try:
        yield spent
    finally:
        spent.append(time.perf_counter() - began)
        gc.enable()


@contextlib.contextmanager
def bytecodes() -> Iterator[list[float]]:
    """A meter of bytecodes that Python runs. What C does inside one of them, such as moving a list's pointers up, is
    not seen."""
    spent: list[float] = []
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
        else:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield spent
    finally:
        sys.settrace(before)
        spent.append(float(count))


def cost_of(event: str, crowd: Crowd, meter: Meter = seconds) -> float:
    """What an event of `EVENTS` costs, all requests together."""
    scheduler = crowd.scheduler()
    with meter() as spent:
        EVENTS[event](scheduler)
    return spent[0]


def cost_of_next_work(crowd: Crowd, meter: Meter = seconds) -> float:
    """What finding the next work costs after a step has ended; the median of some."""
    scheduler = crowd.scheduler()
    costs: list[float] = []
    running = list(scheduler.running)
    while len(costs) < STEPS and running:
        work = running.pop(0)
        scheduler.finished(work, 0.0)
        with meter() as spent:
            started = scheduler.next_work(0.0)
        running += started
        costs.append(spent[0])
    return statistics.median(costs)
