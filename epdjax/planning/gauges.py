"""What a simulation is watched with: how busy instances are, what waits for them, and which moves anybody waits for."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from epdjax.planning.metrics import Moves, Usage
from epdjax.serving.request import State
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Encode, MoveMM


@dataclasses.dataclass
class _Seen:
    """Sums over the samples of an instance."""

    samples: int = 0
    queued: int = 0
    most_queued: int = 0
    running: int = 0


class Gauges:
    """Samples of a scheduler's queues at even moments, and the work of its instances.

    Args:
        every_s: between samples.
    """

    def __init__(self, scheduler: Scheduler, every_s: float):
        self._scheduler, self._every_s = scheduler, every_s
        self._busy_s: dict[str, float] = defaultdict(float)
        self._seen: dict[str, _Seen] = defaultdict(_Seen)
        self._began: float | None = None
        self._next = self._now = 0.0

    def ran(self, instance: str, seconds: float) -> None:
        """A step was run."""
        self._busy_s[instance] += seconds

    def look(self, now: float) -> None:
        """Time has come to `now`: take a sample if one is due."""
        if self._began is None:
            self._began = self._next = now
        self._now = now
        if now < self._next:
            return
        self._next = now + self._every_s
        for ledger in self._scheduler.instances.values():
            seen = self._seen[ledger.name]
            queued = len(ledger.encode_queue) + sum(r.state is not State.PREFILLING for r in ledger.prefill_queue)
            seen.samples += 1
            seen.queued += queued
            seen.most_queued = max(seen.most_queued, queued)
            seen.running += len(ledger.running)

    def usage(self) -> dict[str, Usage]:
        """By instance."""
        seconds = self._now - (self._began or 0.0)
        return {
            name: Usage(
                self._busy_s[name] / seconds if seconds else 0.0,
                seen.queued / seen.samples,
                seen.most_queued,
                seen.running / seen.samples,
            )
            for name, seen in self._seen.items()
        }


class MMMoves:
    """Moves of MM tokens, and what requests waited for the last of theirs."""

    def __init__(self) -> None:
        self._encoded: dict[int, float] = {}
        self.sum = Moves()

    def encoded(self, work: Encode, now: float) -> None:
        """An encode step has ended."""
        self._encoded[work.work_id] = now

    def landed(self, work: MoveMM, seconds: float, now: float, scheduler: Scheduler) -> None:
        """A move has landed, and the scheduler has been told."""
        waited = now - self._encoded.get(work.encode_id, now)
        exposed = sum(waited for name in _requests(work) if self._complete(scheduler, name))
        self.sum = Moves(self.sum.total_s + seconds, self.sum.exposed_s + exposed)

    @staticmethod
    def _complete(scheduler: Scheduler, name: str) -> bool:
        request = scheduler.requests.get(name)
        return request is not None and not request.missing


def _requests(work: MoveMM) -> Iterable[str]:
    return {row.unit.request_id for row in work.rows}
