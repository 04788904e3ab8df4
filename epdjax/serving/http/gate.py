"""Who is inside: counts the requests being worked on, refuses more than can be held, and knows when all have left."""

import asyncio
import contextlib
from collections.abc import Iterator

from epdjax.serving.budget import ByteBudget
from epdjax.serving.errors import Overloaded, ServiceUnavailable
from epdjax.serving.limits import ServingLimits


class Gate:
    """Admission and drain of one server. Used from its event loop only."""

    def __init__(self, limits: ServingLimits):
        self._limits = limits
        self._idle = asyncio.Event()
        self._idle.set()
        self.bodies = ByteBudget(limits.max_buffered_bytes, "bytes of requests")
        self.active = 0
        self.draining = False

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Counts one request in, and out at the end.

        Raises:
            ServiceUnavailable: the server is on its way out.
            Overloaded: it is full.
        """
        if self.draining:
            raise ServiceUnavailable("the server is shutting down; send the request to another one, or again later")
        if self.active >= self._limits.max_active_requests:
            raise Overloaded("the server works on as many requests as it can; try again soon", retry_after_s=1.0)
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if self.active == 0:
                self._idle.set()

    def close(self) -> None:
        """Lets nobody in any more. Who is inside may finish."""
        self.draining = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until the last request has left; whether that happened in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
