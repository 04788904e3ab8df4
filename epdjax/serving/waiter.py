"""Waiting for devices, off the engine's thread."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import jax

STOP_TIMEOUT_S = 10.0
Report = Callable[[Any, BaseException | None], None]


class Waiter:
    """A thread that waits for one lane of results, in order, and reports each."""

    def __init__(self, name: str):
        self._queue: queue.SimpleQueue[tuple[Any, bool, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, arrays: Any, fetch: bool, report: Report) -> None:
        """Report when `arrays` are computed: they themselves, or with `fetch` their values on the host.

        A fetch is started at once and runs beside the computation.
        """
        if fetch:
            for array in jax.tree.leaves(arrays):
                array.copy_to_host_async()
        self._queue.put((arrays, fetch, report))

    def stop(self) -> None:
        """End the thread once it has reported all it was given. A thread that is still inside JAX when the interpreter
        ends takes the process down with it, so this waits."""
        self._queue.put(None)
        self._thread.join(STOP_TIMEOUT_S)

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
