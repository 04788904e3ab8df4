"""The connections that are open: their number bounded, and none kept that sends nothing."""

import asyncio
import logging
import time
from typing import Any

import pydantic_core
from uvicorn.protocols.http.h11_impl import H11Protocol

from epdjax.serving.http.errors import error_body
from epdjax.serving.limits import ServingLimits

log = logging.getLogger(__name__)

SPARE_FILES = 128  # descriptors that are kept for all but connections
ACCEPT_LOG_S = 60.0


class Connections:
    """All open connections of one server. Used from its event loop only.

    Args:
        limits: how many there may be, and how long each may send nothing.
        most: how many the system lets there be, if that is fewer.
    """

    def __init__(self, limits: ServingLimits, most: int):
        self.limits = limits
        self._most = min(limits.max_connections, most)
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # for a request's headers, the longest waiting first

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: "Connection") -> None:
        """A client has connected: where all places are taken it gets that of the one that has waited longest without
        a request, or none where everybody is at work."""
        if len(self._open) >= self._most:
            longest = next(iter(self._waiting), connection)
            longest.drop()
            if longest is connection:
                return
        self._open.add(connection)
        self._waiting[connection] = None

    def wait(self, connection: "Connection") -> None:
        """It waits for a request."""
        if connection in self._open:
            self._waiting[connection] = None

    def work(self, connection: "Connection") -> None:
        """It has a request."""
        self._waiting.pop(connection, None)

    def leave(self, connection: "Connection") -> None:
        """It is closed."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)


class Connection(H11Protocol):
    """A connection that is closed when no whole request head comes in time, however slowly bytes drip, and ended when
    its client does not read what it is sent.

    Uvicorn itself has a time limit only for connections that are idle between two requests, and a connection that it
    closes stays for as long as its client leaves bytes unread.
    """

    registry: Connections  # set in a subclass for each server

    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The client has connected."""
        super().connection_made(transport)
        self.registry.enter(self)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            self.registry.work(self)
        elif self._timer is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        """The answer is on its way; perhaps the next request is here already."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()
        elif self.cycle is not None and self.cycle.response_complete:
            self.registry.wait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_timer()
        self._stop_stall()
        self.registry.leave(self)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close it; what the client has not read of its last answer is lost after a while."""
        if not self.transport.is_closing():
            self.transport.close()
        self.registry.leave(self)
        self._expect_reading()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent bytes."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has read."""
        if not self.transport.is_closing():
            self._stop_stall()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP request: said in the same form as every other error."""
        body = pydantic_core.to_json(error_body(f"{msg} Check its head.", kind="invalid_request_error"))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.drop()

    def timeout_keep_alive_handler(self) -> None:
        """No next request has come after the last one."""
        super().timeout_keep_alive_handler()
        self.drop()

    def _expect_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.registry.limits.header_timeout_s, self.drop)

    def _expect_reading(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(self.registry.limits.stall_timeout_s, self.transport.abort)

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol_for(connections: Connections) -> type[Connection]:
    """The protocol class of one server, as uvicorn's ``http`` setting takes it."""
    return type("ServerConnection", (Connection,), {"registry": connections})


def most_connections() -> int:
    """How many connections the process may have open, after asking the system for as many as it gives."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    except (ImportError, ValueError, OSError):
        return 512
    return 2**31 if soft == -1 else max(1, soft - SPARE_FILES)


class AcceptErrors:
    """An event loop's exception handler: that connections cannot be accepted is said once a minute, not for each."""

    def __init__(self) -> None:
        self._told = -ACCEPT_LOG_S
        self._silent = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See `asyncio.loop.set_exception_handler`."""
        if "accept" not in context.get("message", "") or not isinstance(context.get("exception"), OSError):
            loop.default_exception_handler(context)
            return
        if time.monotonic() - self._told < ACCEPT_LOG_S:
            self._silent += 1
            return
        log.error("connections cannot be accepted: %s (and %d times before)", context["exception"], self._silent)
        self._told, self._silent = time.monotonic(), 0
