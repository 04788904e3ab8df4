"""What a live scheduler was told, written down and told again to another one: does it decide the same?

The simulator stands on that: given when things happen, the scheduler decides what happens next, and nothing else does.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Work

TOLD = ("add", "abort", "finished", "failed", "overdue", "next_work")


@dataclasses.dataclass
class Recording:
    """A scheduler's life.

    Attributes:
        config, specs: it was made with.
        calls: what it was told: the method, its arguments.
        decisions: the work it started, in order.
    """

    config: SchedulerConfig
    specs: tuple[InstanceSpec, ...]
    calls: list[tuple[str, tuple[Any, ...]]] = dataclasses.field(default_factory=list)
    decisions: list[Work] = dataclasses.field(default_factory=list)


def record(scheduler: Scheduler) -> Recording:
    """Write down what a scheduler is told from now on; it must have been told nothing yet. Role switches are not
    written down."""
    recording = Recording(scheduler.config, tuple(ledger.spec for ledger in scheduler.instances.values()))
    for name in TOLD:
        setattr(scheduler, name, functools.partial(_tell, recording, name, getattr(scheduler, name)))
    return recording


def _tell(recording: Recording, name: str, method: Callable[..., Any], *args: Any) -> Any:
    recording.calls.append((name, copy.copy(args)))
    answer = method(*args)
    if name == "next_work":
        recording.decisions += answer
    return answer


def replay(recording: Recording) -> list[Work]:
    """The decisions of another scheduler that is told the same."""
    scheduler = Scheduler(recording.config, recording.specs)
    decisions: list[Work] = []
    for name, args in recording.calls:
        answer = getattr(scheduler, name)(*args)
        if name == "next_work":
            decisions += answer
    return decisions


def first_difference(recorded: Sequence[Work], replayed: Sequence[Work]) -> int | None:
    """Where two lists of decisions part; None where they are the same."""
    for at, (one, other) in enumerate(zip(recorded, replayed)):
        if one != other:
            return at
    return None if len(recorded) == len(replayed) else min(len(recorded), len(replayed))
