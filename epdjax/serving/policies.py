"""Small rules that can be swapped: in which order a stage serves its queue, and which instance gets a request."""

from collections.abc import Callable, Sequence
from typing import Protocol

from epdjax.serving.request import Request

Order = Callable[[Request], tuple[float, ...]]
"""A sort key: the smallest is served first. Ties go to the earlier arrival."""


def fcfs(request: Request) -> tuple[float, ...]:
    """First come, first served."""
    return (request.order,)


ORDERS: dict[str, Order] = {"fcfs": fcfs}


class Assignment(Protocol):
    """Chooses one of several instances by their loads. One object per stage; it may keep state."""

    def choose(self, names: Sequence[str], load: Callable[[str], float]) -> str: ...


class RoundRobin:
    """Each in turn, across requests (not restarted for each, which would send everything to the first)."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, names: Sequence[str], load: Callable[[str], float]) -> str:
        self._turn += 1
        return names[(self._turn - 1) % len(names)]


class LeastLoaded:
    """The instance with the least outstanding work; the first of equals."""

    def choose(self, names: Sequence[str], load: Callable[[str], float]) -> str:
        return min(names, key=load)


ASSIGNMENTS: dict[str, Callable[[], Assignment]] = {"least-loaded": LeastLoaded, "round-robin": RoundRobin}
