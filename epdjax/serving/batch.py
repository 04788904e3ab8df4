"""Many requests of one caller: prepared and handed over in a bounded pipeline, so any number takes little memory."""

import collections
import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from epdjax.serving.errors import RequestError
from epdjax.serving.live import LiveRequest, Sink
from epdjax.serving.outputs import RequestOutput

T = TypeVar("T")
Answer = RequestOutput | RequestError


@dataclasses.dataclass(frozen=True)
class Load:
    """What requests take of the engine's queues: their number, encode units and bytes of media."""

    requests: int = 0
    units: int = 0
    media_bytes: int = 0

    @classmethod
    def of(cls, request: LiveRequest) -> "Load":
        """Of a request and its followers, whose media are the same."""
        spec, count = request.spec, 1 + len(request.followers)
        return cls(count, count * spec.units, count * spec.media_bytes)

    def __add__(self, other: "Load") -> "Load":
        return Load(self.requests + other.requests, self.units + other.units, self.media_bytes + other.media_bytes)

    def __sub__(self, other: "Load") -> "Load":
        return self + Load(-other.requests, -other.units, -other.media_bytes)

    def fits(self, most: "Load") -> bool:
        return self.requests <= most.requests and self.units <= most.units and self.media_bytes <= most.media_bytes


class Room:
    """How much of the engine's queues one caller may take, so that a long list waits instead of being refused."""

    def __init__(self, most: Load):
        self._most, self._taken = most, Load()
        self._changed = threading.Condition()

    def take(self, load: Load) -> None:
        """Wait until there is room; something too large for all of it waits until nothing else is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == Load() or (self._taken + load).fits(self._most))
            self._taken += load

    def give_back(self, load: Load) -> None:
        with self._changed:
            self._taken -= load
            self._changed.notify_all()


class Batch(Generic[T]):
    """Runs a list of requests.

    Args:
        prepare: makes ready what one item needs; slow, runs on `threads` threads, a few items ahead.
        request: makes an item's request, given its place in the list, what was prepared and who hears of it.
        submit, abort: of the engine.
        room: shared by all batches of an engine.
    """

    def __init__(
        self,
        prepare: Callable[[int], T],
        request: Callable[[int, T, Sink], LiveRequest],
        submit: Callable[[LiveRequest], None],
        abort: Callable[[str], None],
        *,
        room: Room,
        threads: int,
    ):
        self._prepare, self._request, self._submit, self._abort = prepare, request, submit, abort
        self._room, self._threads = room, threads

    def run(self, count: int) -> list[Answer]:
        """The answers to items ``0 .. count``, in order: an output or the error that took its place.

        Whatever interrupts this ends all requests that are still running.
        """
        answers: list[concurrent.futures.Future[Answer]] = []
        live: dict[int, Sequence[str]] = {}
        ahead: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        items = iter(range(count))
        pool = concurrent.futures.ThreadPoolExecutor(self._threads, "epdjax-prepare")
        try:
            for index in range(count):
                ahead += [
                    pool.submit(self._prepare, i) for i in itertools.islice(items, 2 * self._threads - len(ahead))
                ]
                answers.append(concurrent.futures.Future())
                self._hand_over(index, ahead.popleft(), answers[index], live)
            return [future.result() for future in answers]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for ids in list(live.values()):
                for request_id in ids:
                    self._abort(request_id)

    def _hand_over(
        self,
        index: int,
        prepared: concurrent.futures.Future[T],
        answer: concurrent.futures.Future[Answer],
        live: dict[int, Sequence[str]],
    ) -> None:
        load = Load()

        def sink(output: Answer) -> None:
            if isinstance(output, RequestError) or output.finished:
                live.pop(index, None)
                self._room.give_back(load)
                answer.set_result(output)

        try:
            request = self._request(index, prepared.result(), sink)
        except RequestError as error:
            answer.set_result(error)
            return
        load = Load.of(request)
        self._room.take(load)
        live[index] = [some.spec.request_id for some in (request, *request.followers)]
        self._submit(request)
