"""Schedulers to test, requests to give them, and a world in which their work takes no time."""

import collections
import heapq
import itertools
import math
from typing import Any

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.audit import audit
from epdjax.serving.buckets import default_buckets
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work

BUCKETS = default_buckets(max_model_len=256, block_size=16, max_chunk=64, max_seqs=4, max_units=2, unit_sizes=(1, 2))


def make_instance(name: str, roles: str) -> InstanceSpec:
    """A small instance."""
    return InstanceSpec(name, roles, kv_blocks=20, mm_blocks=24, slots=4, encode_width=1, staging=2)


def make_scheduler(layout: str, **limits: Any) -> Scheduler:
    """A small deployment; `layout` lists the roles of its instances."""
    instances = [make_instance(f"{roles}{i}", roles) for i, roles in enumerate(layout.split())]
    return Scheduler(SchedulerConfig(**{"buckets": BUCKETS, "max_model_len": 256} | limits), instances)


def drive(scheduler: Scheduler) -> list[Work]:
    """Run everything to its end, in order."""
    done, pending = [], collections.deque(scheduler.next_work(0.0))
    while pending:
        work = pending.popleft()
        done.append(work)
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    return done


def run_alone(layout: str, spec: RequestSpec) -> list[Work]:
    """All work of a single request, in order."""
    scheduler = make_scheduler(layout)
    scheduler.add(spec, 0.0)
    done = drive(scheduler)
    assert scheduler.idle
    return done


def picture(request_id: str, *contents: str, **more: Any) -> RequestSpec:
    """A request about some pictures of 16 tokens each."""
    keys = tuple(("picture", content) for content in contents)
    return RequestSpec(request_id, 100, 2, (16,) * len(contents), unit_keys=keys, **more)


def seconds(work: Work, move_s: float = 0.001) -> float:
    """What work takes in `simulate`: a millisecond for a token that is run, ten for a unit or for a decode step."""
    match work:
        case Encode():
            return 0.01 * len(work.units)
        case Prefill():
            return 0.001 * sum(chunk.length for chunk in work.chunks)
        case Decode():
            return 0.01
    return move_s


def simulate(
    scheduler: Scheduler,
    arrivals: list[tuple[float, RequestSpec]],
    log: list[tuple[float, Work]] | None = None,
    move_s: float = 0.001,
) -> dict[str, tuple[float, str]]:
    """Run requests under a virtual clock, instances doing one thing at a time.

    Args:
        arrivals: (seconds, request), in order.
        log: takes (when it ended, work).
        move_s: seconds that a move takes.

    Returns:
        When each request ended, and why.
    """
    ends: dict[str, tuple[float, str]] = {}
    free_at: dict[tuple[str, bool], float] = {}
    events: list[tuple[float, int, Work | RequestSpec]] = []
    count = itertools.count()
    for at, spec in arrivals:
        heapq.heappush(events, (at, next(count), spec))
    while events or not scheduler.idle:
        now = min(events[0][0] if events else math.inf, scheduler.next_deadline)
        assert now < math.inf, f"stuck: {scheduler.counts()}"
        finished = scheduler.overdue(now)
        while events and events[0][0] <= now:
            _, _, event = heapq.heappop(events)
            if isinstance(event, RequestSpec):
                scheduler.add(event, now)
            else:
                finished += scheduler.finished(event, now)
                if log is not None:
                    log.append((now, event))
        ends |= {event.request_id: (now, event.reason) for event in finished}
        for work in scheduler.next_work(now):
            lane = (work.instance, isinstance(work, (MoveMM, MoveKV)))
            free_at[lane] = max(free_at.get(lane, 0.0), now) + seconds(work, move_s)
            heapq.heappush(events, (free_at[lane], next(count), work))
    audit(scheduler)
    return ends
