"""Threads for work that would hold up the event loop: parsing large bodies, decoding pictures, fetching them."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from epdjax.serving.errors import Overloaded
from epdjax.serving.limits import ServingLimits

P = ParamSpec("P")
T = TypeVar("T")


class DecodingPool:
    """A bounded number of threads with a bounded queue. Picture decoders let go of the GIL, so threads do help."""

    def __init__(self, limits: ServingLimits):
        self._bound = limits.media_workers + limits.max_waiting_media
        self._executor = ThreadPoolExecutor(limits.media_workers, thread_name_prefix="media")
        self._lock = threading.Lock()
        self._pending = 0

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on a thread. Cancelled while it waits for one, it is never called.

        Raises:
            Overloaded: too many are waiting.
        """
        with self._lock:
            if self._pending >= self._bound:
                raise Overloaded("too many pictures are waiting to be decoded; try again soon", retry_after_s=1.0)
            self._pending += 1
        future: Future[T] = self._executor.submit(function, *args, **kwargs)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _done(self, _: Future[T]) -> None:
        with self._lock:
            self._pending -= 1
