"""What steps of several instances want of the cores that virtual devices share, told by how they hold one another up.

The processor time that a step takes says too little: two short steps at a time also wait for the interpreter, and for
the threads that all devices of a process have in common.
"""

import itertools
import statistics
import threading
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from epdjax.planning.costs.stepping import Call

SECONDS = 0.5  # that a pair is watched for
PRIOR = 0.1  # weight of processor time beside a pair that was watched
Step = tuple[int, str]
"""The number of an instance's kind, and a stage."""


def cores_wanted(calls: Mapping[Step, Call], busy: Mapping[Step, float], cores: int) -> dict[Step, float]:
    """Cores that a step of each stage of each kind of instance wants.

    Steps that run at once are slowed down alike, by as much as they want more cores than there are. That is laid
    through what pairs of steps on different instances do to each other.

    Args:
        calls: a step of each. busy: cores that it keeps busy by itself. cores: that there are.
    """
    steps = list(calls)
    alone = {step: _together([calls[step]])[0] for step in steps}
    rows = [PRIOR * np.eye(len(steps))[at] for at in range(len(steps))]
    sums = [PRIOR * busy[step] for step in steps]
    for one, other in itertools.combinations(range(len(steps)), 2):
        pair = steps[one], steps[other]
        if pair[0][0] == pair[1][0]:
            continue  # an instance does one thing at a time
        times = _together([calls[step] for step in pair])
        slower = statistics.fmean(now / alone[step] for now, step in zip(times, pair))
        if slower > 1:
            rows.append(np.eye(len(steps))[one] + np.eye(len(steps))[other])
            sums.append(cores * slower)
    found, *_ = np.linalg.lstsq(np.stack(rows), np.array(sums), rcond=None)
    return {step: max(0.1, float(wanted)) for step, wanted in zip(steps, found)}


def _together(calls: Sequence[Call]) -> list[float]:
    """Median seconds of each call, each made again and again by a thread of its own."""
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()

    def repeat(call: Call, seconds: list[float]) -> None:
        while len(seconds) < 3 or time.perf_counter() - began < SECONDS:
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(calls, times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [statistics.median(some) for some in times]
