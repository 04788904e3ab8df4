"""What runs in a simulation: a few things at a time on every lane, in the order they were started.

Lanes are instances, links between two of them, and the host's workers. Where devices share cores, as virtual CPU
devices do, what runs at once slows each other down.
"""

import collections
import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

End = Callable[[float, float], None]
"""Told of something that has ended when it began, and when it ended."""


@dataclasses.dataclass(slots=True)
class _Job:
    lane: "_Lane"
    seconds: float
    demand: float
    kind: Any
    end: End
    followers: "list[_Job]" = dataclasses.field(default_factory=list)
    began: float = math.nan
    speed: float = 1.0
    ended: bool = False


@dataclasses.dataclass(slots=True)
class _Lane:
    """Jobs of a lane: those that wait for their turn, how many run, and the last that was started."""

    width: int
    waiting: collections.deque[_Job] = dataclasses.field(default_factory=collections.deque)
    running: int = 0
    last: _Job | None = None


class Lanes:
    """See the module.

    Args:
        cores: that everything shares; infinitely many: nothing slows anything down.
        waking_s: that a job takes longer before which nothing ran.
        takes: how many cores a job of the first kind takes from one of the second; by default its demand.
    """

    def __init__(
        self,
        cores: float = math.inf,
        waking_s: float = 0.0,
        takes: Mapping[tuple[Any, Any], float] | None = None,
    ):
        self._cores, self._takes = cores, takes or {}
        self._waking_s, self._idle_since = waking_s, -math.inf
        self._lanes: dict[Hashable, _Lane] = {}
        self._ends: list[tuple[float, int, _Job]] = []
        self._count = itertools.count()

    @property
    def next(self) -> float:
        """When the next job ends, as things are."""
        return self._ends[0][0] if self._ends else math.inf

    def start(
        self,
        lane: Hashable,
        seconds: float,
        end: End,
        now: float,
        *,
        demand: float = 0.0,
        kind: Any = None,
        width: int = 1,
        after: Hashable = None,
    ) -> None:
        """Give a lane something to do.

        Args:
            seconds: it takes with enough cores.
            end: called when it has ended.
            demand: cores it keeps busy. kind: for `takes`.
            width: how many jobs the lane does at a time; counts the first time.
            after: a lane; it begins when what that one was given so far has ended.
        """
        mine = self._lane(lane, width)
        job = mine.last = _Job(mine, seconds, demand, kind, end)
        first = self._lane(after, 1).last if after is not None else None
        if first is not None and not first.ended:
            first.followers.append(job)
        else:
            self._queue(job, now)

    def pop(self) -> float:
        """End the next job; returns the moment. What waited for it begins, then it is told."""
        now, _, job = heapq.heappop(self._ends)
        job.ended = True
        self._pace(now)
        job.lane.running -= 1
        self._idle_since = now
        if job.lane.waiting:
            self._run(job.lane.waiting.popleft(), now)
        for follower in job.followers:
            self._queue(follower, now)
        job.end(job.began, now)
        return now

    def _lane(self, name: Hashable, width: int) -> _Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(width)
        return lane

    def _queue(self, job: _Job, now: float) -> None:
        if job.lane.running < job.lane.width:
            self._run(job, now)
        else:
            job.lane.waiting.append(job)

    def _run(self, job: _Job, now: float) -> None:
        job.lane.running += 1
        job.began = now
        asleep = not self._ends and now > self._idle_since
        seconds = job.seconds + (self._waking_s if asleep else 0.0)
        heapq.heappush(self._ends, (now + seconds, next(self._count), job))
        self._pace(now)

    def _pace(self, now: float) -> None:
        """Others run than before: each goes on at the speed that leaves it."""
        if self._cores == math.inf:
            return
        running = [job for *_, job in self._ends]
        wanted = sum([job.demand for job in running])
        for at, (end, count, job) in enumerate(self._ends):
            mine = wanted + sum([self._more(job, other) for other in running if other is not job])
            speed = min(1.0, self._cores / mine) if mine > 0 else 1.0
            if speed != job.speed:
                self._ends[at] = (now + (end - now) * job.speed / speed, count, job)
                job.speed = speed
        heapq.heapify(self._ends)

    def _more(self, job: _Job, other: _Job) -> float:
        """What another takes from a job besides its demand."""
        taken = self._takes.get((other.kind, job.kind)) if other.kind is not None else None
        return 0.0 if taken is None else taken - other.demand
