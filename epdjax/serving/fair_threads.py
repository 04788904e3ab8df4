"""Threads that clients share fairly: each client has a queue of its own, and the queues take turns."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from epdjax.serving.errors import Overloaded, ServiceUnavailable


class FairThreads:
    """A bounded number of threads with bounded queues. One client's thousand jobs delay another's next one by one job.

    The threads are daemons: whoever ends the interpreter does not wait for them.

    Args:
        name: of the threads.
        threads: how many jobs run at a time.
        waiting: jobs that may wait for a thread.
        what: they are, for the error.
    """

    def __init__(self, name: str, threads: int, waiting: int, what: str):
        self._name, self._most_threads, self._most_waiting, self._what = name, threads, waiting, what
        self._changed = threading.Condition()
        self._queues: collections.OrderedDict[str, collections.deque[tuple[Future[Any], Callable[[], Any]]]]
        self._queues = collections.OrderedDict()  # the client whose turn it is comes first
        self._threads = self._idle = self._waiting = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._waiting

    def submit(self, client: str, job: Callable[[], Any]) -> Future[Any]:
        """Have a job run. Its future can be cancelled until a thread takes it.

        Raises:
            Overloaded: too many jobs wait, or half of all that may wait are this client's.
            ServiceUnavailable: the threads are closed.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise ServiceUnavailable("the server is shutting down; send the request again later")
            room = self._idle + self._most_threads - self._threads
            mine = self._queues.get(client, ())
            if self._waiting >= self._most_waiting + room or len(mine) > (self._most_waiting + room) // 2:
                raise Overloaded(f"{self._waiting} {self._what}; try again soon", retry_after_s=1.0)
            self._queues.setdefault(client, collections.deque()).append((future, job))
            self._waiting += 1
            if self._idle < self._waiting and self._threads < self._most_threads:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Drop what waits; the threads end when they are done with what they are at."""
        with self._changed:
            self._closed = True
            dropped = [future for queue in self._queues.values() for future, _ in queue]
            self._queues.clear()
            self._waiting = 0
            self._changed.notify_all()
        for future in dropped:
            if future.set_running_or_notify_cancel():
                future.set_exception(ServiceUnavailable("the server is shutting down; send the request again later"))

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            future, job = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del taken, future, job  # an idle thread must not keep a request's pictures alive

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queues or self._closed)
            self._idle -= 1
            if not self._queues:
                self._threads -= 1
                return None
            client, queue = self._queues.popitem(last=False)
            taken = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind all others
            self._waiting -= 1
            return taken
