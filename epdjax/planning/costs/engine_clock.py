"""How long everything takes that a live engine does for work."""

import collections
import dataclasses
import statistics
import time

from epdjax.planning.costs.profile import NAMES, LoopTimes
from epdjax.serving.engine import Done, Engine
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Work


@dataclasses.dataclass(frozen=True)
class Waited:
    """Seconds from when the engine set out to start work on an instance to hearing of its end, less what starting it
    took its thread; `fresh` if the instance had nothing else to do then."""

    work: Work
    instance: InstanceSpec
    seconds: float
    fresh: bool


class EngineClock:
    """Times everything that an engine does for work, from now on; all but reading happens on its thread."""

    def __init__(self, engine: Engine):
        self._engine, self._methods = engine, (engine._start, engine._finish)
        self._started: dict[int, tuple[float, bool]] = {}
        self._running: collections.Counter[str] = collections.Counter()
        self.reset()
        engine._start, engine._finish = self._start, self._finish  # type: ignore[method-assign]

    def reset(self) -> None:
        """Begin anew."""
        self.starts: dict[str, list[float]] = collections.defaultdict(list)
        self.ends: dict[str, list[float]] = collections.defaultdict(list)
        self.waited: list[Waited] = []
        self._began, self._held_s = time.thread_time(), 0.0

    def stop(self) -> None:
        """Leave the engine alone."""
        del self._engine._start, self._engine._finish

    def _start(self, work: Work) -> None:
        began, worked = time.perf_counter(), time.thread_time()
        self._methods[0](work)
        start_s = worked_s = time.thread_time() - worked
        if not self._running.total():  # nothing slows it down then: what the thread did not work, it was held up
            start_s = time.perf_counter() - began
            self._held_s += start_s - worked_s
        self.starts[NAMES[type(work)]].append(start_s)
        self._started[work.work_id] = began + start_s, not self._running[work.instance]
        self._running[work.instance] += 1

    def _finish(self, done: Done) -> None:
        work, worked = done.work, time.thread_time()
        if work.work_id not in self._started:  # it was under way before the clock was
            self._methods[1](done)
            return
        began, fresh = self._started.pop(work.work_id)
        self._running[work.instance] -= 1
        spec = self._engine.scheduler.instances[work.instance].spec
        self.waited.append(Waited(work, spec, time.perf_counter() - began, fresh))
        self._methods[1](done)
        self.ends[NAMES[type(work)]].append(time.thread_time() - worked)

    def loop(self) -> dict[str, LoopTimes]:
        """Seconds that the thread took for each kind of work. What was neither start nor end of any, such as decisions,
        is shared out among all ends; work of a kind that was not seen is taken to be like prefill."""
        worked = time.thread_time() - self._began + self._held_s
        known = sum(sum(some) for times in (self.starts, self.ends) for some in times.values())
        between = max(0.0, worked - known) / sum(len(some) for some in self.ends.values())
        seen = {
            name: LoopTimes(statistics.mean(self.starts[name]), statistics.mean(self.ends[name]) + between)
            for name in NAMES.values()
            if self.starts[name] and self.ends[name]
        }
        return {name: seen.get(name, seen["prefill"]) for name in NAMES.values()}
