"""Waiting for devices, off the engine's thread."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

STOP_TIMEOUT_S = 10.0
Report = Callable[[Any, BaseException | None], None]
LANES = ("compute", "move")


class Waiter:
    """A thread that waits for one lane of results, in order, and reports each."""

    def __init__(self, name: str):
        self.name = name
        self._queue: queue.SimpleQueue[tuple[Any, bool, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    def watch(self, arrays: Any, fetch: bool, report: Report) -> None:
        """Report when `arrays` are computed: they themselves, or with `fetch` their values on the host.

        A fetch is started at once and runs beside the computation.
        """
        if fetch:
            for array in jax.tree.leaves(arrays):
                array.copy_to_host_async()
        self._queue.put((arrays, fetch, report))

    def leave(self) -> None:
        """Have the thread end once it has reported all it was given."""
        self._queue.put(None)

    def hand_over(self, other: "Waiter") -> None:
        """Leave what the thread has not begun to wait for to another, and have it end after the rest."""
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            other._queue.put(item)
        self.leave()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            arrays, fetch, report = item
            result = None
            try:
                result = jax.device_get(arrays) if fetch else jax.block_until_ready(arrays)
            except Exception as error:
                report(None, error)
            else:
                report(result, None)
            del arrays, result, report, item  # finished arrays must not be kept alive until the next ones come


class Waiters:
    """The waiters of an engine, for its thread: for each instance one for its steps (``compute``) and one for the moves
    to it (``move``)."""

    def __init__(self) -> None:
        self._waiters: dict[tuple[str, str], Waiter] = {}
        self._left: list[Waiter] = []  # they may still wait for something that never ends

    def of(self, instance: str, lane: str) -> Waiter:
        """The one that waits for a lane of an instance."""
        key = (instance, lane)
        if key not in self._waiters:
            self._waiters[key] = Waiter(f"epdjax-{instance}-{lane}")
        return self._waiters[key]

    def renew(self, instance: str, lane: str) -> None:
        """Something holds the waiter of a lane up: another takes over what comes behind it."""
        held_up = self._waiters.pop((instance, lane), None)
        if held_up is not None:
            held_up.hand_over(self.of(instance, lane))
            self._leave(held_up)

    def drop(self, instance: str) -> None:
        """An instance is no more: one that comes under its name has waiters of its own."""
        for lane in LANES:
            waiter = self._waiters.pop((instance, lane), None)
            if waiter is not None:
                waiter.leave()
                self._leave(waiter)

    def stop(self) -> None:
        """End all threads. A thread that is still inside JAX when the interpreter ends takes the process down with it,
        so this waits, `STOP_TIMEOUT_S` at most."""
        everyone = [*self._waiters.values(), *self._left]
        for waiter in everyone:
            waiter.leave()
        until = time.monotonic() + STOP_TIMEOUT_S
        for waiter in everyone:
            waiter.join(max(0.0, until - time.monotonic()))

    def _leave(self, waiter: Waiter) -> None:
        self._left = [*(other for other in self._left if other.is_alive), waiter]
