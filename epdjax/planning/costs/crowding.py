"""How much steps of different instances slow each other down on devices that share the host's cores.

How many cores each keeps busy does not say it: threads that wait for one another are busy too, and short steps wait
behind long ones for the threads that all share.
"""

import collections
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

import jax

from epdjax.planning.costs.profile import Beside
from epdjax.planning.costs.stepping import Call

TIMES = 1  # that each step is called at least, after one time that does not count
Step = tuple[int, str]
"""An instance, by its number, and a stage."""


@dataclasses.dataclass(frozen=True)
class _Over:
    """A call again and again, the next one given ahead as the engine does; seconds from one end to the next."""

    call: Call
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        under_way, began = self.call(), time.perf_counter()
        while not stop.is_set():
            ahead = self.call()
            jax.block_until_ready(under_way)
            ended = time.perf_counter()
            if not stop.is_set():  # others may have ended already
                self.seconds.append(ended - began)
            under_way, began = ahead, ended
        jax.block_until_ready(under_way)


def crowding(calls: Mapping[Step, Call], rounds: int, least_s: float) -> tuple[Beside, ...]:
    """Steps alone, and each two of different instances at the same time.

    Args:
        calls: a step of each stage of each instance. rounds: over all of them.
        least_s: that it goes on for at least.
    """
    pairs = [pair for pair in itertools.combinations(calls, 2) if pair[0][0] != pair[1][0]]
    groups = [(step,) for step in dict.fromkeys(step for pair in pairs for step in pair)] + pairs
    times: dict[tuple[Step, ...], list[list[float]]] = collections.defaultdict(list)
    for _ in range(rounds):
        for group in groups:
            times[group].append(_at_once([calls[step] for step in group], least_s / rounds / len(groups)))
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for pair in pairs:
        for step, other in (pair, pair[::-1]):
            alone_s = statistics.fmean(seconds for (seconds,) in times[(step,)])
            beside_s = statistics.fmean(seconds[pair.index(step)] for seconds in times[pair])
            found[step[1], other[1]].append(beside_s / alone_s)
    return tuple(Beside(*stages, statistics.fmean(slower)) for stages, slower in found.items())


def _at_once(calls: Sequence[Call], least_s: float) -> list[float]:
    """Mean seconds of each, all of them running all the time; the first time of each does not count."""
    stop, all_over = threading.Event(), [_Over(call) for call in calls]
    began = time.perf_counter()
    with futures.ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(over.run, stop) for over in all_over]
        while time.perf_counter() - began < least_s or any(len(over.seconds) <= TIMES for over in all_over):
            if any(one.done() for one in running):
                break  # it failed
            time.sleep(0.01)
        stop.set()
        for one in running:
            one.result()
    return [statistics.fmean(over.seconds[1:]) for over in all_over]
