"""How fast the machine itself is: on rented ones the same work takes up to twice as long for seconds or minutes,
because of what others do on the same processor. A process that does the same bit of work again and again sees it."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np

EVERY_S = 0.05
ADDITIONS = 30_000  # about a millisecond: two hundredths of a core
Sample = tuple[float, float]
"""A moment (`time.monotonic`), and the seconds of processor time that the work took then."""


class Probe:
    """Samples while it is entered. What the process's own machine does besides does not show: processor time counts."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_sample, args=(there,), daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> "Probe":
        self._process.start()
        self._here.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.send(None)
        self.samples = self._here.recv()
        self._process.join()

    @property
    def typical_s(self) -> float:
        """What the work took most of the time."""
        return statistics.median(seconds for _, seconds in self.samples)


def _sample(connection: Connection) -> None:
    samples = []
    connection.send(None)
    while not connection.poll(EVERY_S):
        began, total = time.thread_time(), 0
        for number in range(ADDITIONS):
            total += number
        samples.append((time.monotonic(), time.thread_time() - began))
    connection.send(samples)


class MachineClock:
    """Time as the machine works: it goes slower while the machine does.

    Args:
        samples: of a probe. typical_s: what its work took when the clock went like any other.
    """

    def __init__(self, samples: Sequence[Sample], typical_s: float):
        moments = np.array([at for at, _ in samples])
        speeds = typical_s / np.array([seconds for _, seconds in samples])
        self._wall = moments
        self._own = np.concatenate([[0.0], np.cumsum(np.diff(moments) * speeds[1:])])

    def own(self, wall: float) -> float:
        """Of a moment (`time.monotonic`); before the first sample and after the last the clock goes like any other."""
        return _beyond(wall, self._wall, self._own)

    def wall(self, own: float) -> float:
        """The moment at which this clock shows `own`."""
        return _beyond(own, self._own, self._wall)


def _beyond(x: float, xs: np.ndarray, ys: np.ndarray) -> float:
    inside = min(max(x, xs[0]), xs[-1])
    return float(np.interp(inside, xs, ys)) + x - inside
