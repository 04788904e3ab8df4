"""What runs in a simulation: a few things at a time on every lane, in the order they were started.

Lanes are instances, links between two of them, and the host's workers. Where devices share cores, as virtual CPU
devices do, all that runs at once is slowed down alike.
"""

import collections
import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Hashable

End = Callable[[float, float], None]
"""Told of something that has ended when it began, and when it ended."""


@dataclasses.dataclass(slots=True)
class _Job:
    lane: "_Lane"
    seconds: float
    demand: float
    end: End
    followers: "list[_Job]" = dataclasses.field(default_factory=list)
    began: float = math.nan
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
    """

    def __init__(self, cores: float = math.inf, waking_s: float = 0.0):
        self._cores, self._demand, self._speed = cores, 0.0, 1.0
        self._waking_s, self._running, self._idle_since = waking_s, 0, -math.inf
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
        width: int = 1,
        after: Hashable = None,
    ) -> None:
        """Give a lane something to do.

        Args:
            seconds: it takes with enough cores.
            end: called when it has ended.
            demand: cores it keeps busy.
            width: how many jobs the lane does at a time; counts the first time.
            after: a lane; it begins when what that one was given so far has ended.
        """
        mine = self._lane(lane, width)
        job = mine.last = _Job(mine, seconds, demand, end)
        first = self._lane(after, 1).last if after is not None else None
        if first is not None and not first.ended:
            first.followers.append(job)
        else:
            self._queue(job, now)

    def pop(self) -> float:
        """End the next job; returns the moment. What waited for it begins, then it is told."""
        now, _, job = heapq.heappop(self._ends)
        job.ended = True
        self._pace(now, -job.demand)
        job.lane.running -= 1
        self._running -= 1
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
        self._pace(now, job.demand)
        asleep = not self._running and now > self._idle_since
        self._running += 1
        seconds = job.seconds + (self._waking_s if asleep else 0.0)
        heapq.heappush(self._ends, (now + seconds / self._speed, next(self._count), job))

    def _pace(self, now: float, more: float) -> None:
        """So many cores more are wanted: all that runs goes on at the speed that leaves it."""
        self._demand += more
        speed = 1.0 if self._demand <= self._cores else self._cores / self._demand
        if speed != self._speed:
            longer = self._speed / speed
            self._ends = [(now + (at - now) * longer, count, job) for at, count, job in self._ends]
            heapq.heapify(self._ends)
            self._speed = speed
