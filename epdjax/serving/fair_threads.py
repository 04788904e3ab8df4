"""Threads that clients share fairly: each client has a queue of its own, and the queues take turns."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from epdjax.serving.errors import Overloaded, ServiceUnavailable


class _Job:
    """A job that waits. What it has to do is let go of when it is taken or dropped: its future may live on."""

    def __init__(self, run: Callable[[], Any]):
        self.future: Future[Any] = Future()
        self.run: Callable[[], Any] | None = run

    def take(self) -> Callable[[], Any]:
        run, self.run = self.run, None
        assert run is not None
        return run


class FairThreads:
    """A bounded number of threads with bounded queues. One client's thousand jobs delay another's next one by one job,
    and however long they take, a quarter of the threads is left to others.

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
        self._queues: collections.OrderedDict[str, collections.deque[_Job]]
        self._queues = collections.OrderedDict()  # the client whose turn it is comes first
        self._threads = self._idle = self._waiting = 0
        self._running: collections.Counter[str] = collections.Counter()
        self._most_of_one = max(1, threads - max(1, threads // 4))
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
        waiting = _Job(job)
        with self._changed:
            if self._closed:
                raise ServiceUnavailable("the server is shutting down; send the request again later")
            room = self._idle + self._most_threads - self._threads
            mine = self._queues.get(client, ())
            if self._waiting >= self._most_waiting + room or len(mine) > (self._most_waiting + room) // 2:
                raise Overloaded(f"{self._waiting} {self._what}; try again soon", retry_after_s=1.0)
            self._queues.setdefault(client, collections.deque()).append(waiting)
            self._waiting += 1
            if self._idle < self._waiting and self._threads < self._most_threads:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._changed.notify()
        waiting.future.add_done_callback(lambda done: self._drop(client, waiting) if done.cancelled() else None)
        return waiting.future

    def close(self) -> None:
        """Drop what waits; the threads end when they are done with what they are at."""
        with self._changed:
            self._closed = True
            dropped = [job.future for queue in self._queues.values() for job in queue]
            self._queues.clear()
            self._waiting = 0
            self._changed.notify_all()
        for future in dropped:
            if future.set_running_or_notify_cancel():
                future.set_exception(ServiceUnavailable("the server is shutting down; send the request again later"))

    def _drop(self, client: str, job: _Job) -> None:
        """A job was cancelled: what it holds need not wait for a thread."""
        with self._changed:
            queue = self._queues.get(client, collections.deque())
            if job in queue:
                queue.remove(job)
                job.take()
                self._waiting -= 1
                if not queue:
                    del self._queues[client]

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            client, future, run = taken
            if future.set_running_or_notify_cancel():
                try:
                    result = run()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del taken, future, run  # an idle thread must not keep a request's pictures alive
            with self._changed:
                self._running[client] -= 1
                if not self._running[client]:
                    del self._running[client]
                self._changed.notify_all()

    def _next(self) -> tuple[str, Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._closed or self._next_client() is not None)
            self._idle -= 1
            client = self._next_client()
            if client is None:
                self._threads -= 1
                return None
            queue = self._queues.pop(client)
            job = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind all others
            self._waiting -= 1
            self._running[client] += 1
            return client, job.future, job.take()

    def _next_client(self) -> str | None:
        """Whose job is next: the first who does not hold all the threads that one client may."""
        return next((client for client in self._queues if self._running[client] < self._most_of_one), None)
