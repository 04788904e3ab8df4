"""Cores that are kept awake while something is measured.

A core that was idle for some milliseconds may be slower for long after: it sleeps, its clock is low, or, on a virtual
machine, its place on the host was given away (a step over two cores took 1.5 times as long after pauses of 30 ms). What
is called again and again would then be measured on another machine than what is called now and then.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator


@contextlib.contextmanager
def cores_awake() -> Iterator[None]:
    """Keep every core that this process may use from idling, by processes that give way to everything else; where the
    system has no such processes, nothing is done."""
    if not (hasattr(os, "SCHED_IDLE") and hasattr(os, "sched_getaffinity")):
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    idlers = [spawn.Process(target=_idle, args=(core, os.getpid()), daemon=True) for core in os.sched_getaffinity(0)]
    for idler in idlers:
        idler.start()
    try:
        yield
    finally:
        for idler in idlers:
            idler.kill()
            idler.join()


def _idle(core: int, parent: int) -> None:
    """Use up what is left of a core until the parent has ended."""
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass
