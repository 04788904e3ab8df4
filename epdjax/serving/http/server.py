"""Runs the application, and ends it well: SIGTERM lets what is running finish, a second signal does not."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from epdjax.serving.http.connections import AcceptErrors, Connections, most_connections, protocol_for
from epdjax.serving.http.service import Service

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 2048
OnReady = Callable[[str, int], None]


def serve(
    app: FastAPI,
    listener: socket.socket,
    *,
    drain_timeout_s: float = 120.0,
    trusted_proxies: str = "",
    on_ready: OnReady | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT.

    Then no new request is taken (503 with Retry-After), `/health` answers 503 "draining" so that load balancers turn
    away, running requests and streams finish, and the engine is shut down. A second signal ends the process at once.

    Args:
        app: from `create_app`.
        listener: from `bind`; it starts to listen now, and is closed at the end.
        drain_timeout_s: how long running requests may take to finish before they are cut off with an error.
        trusted_proxies: addresses and networks, with commas between; what they say in X-Forwarded-For of whom they
            forward for is believed, from others it is not.
        on_ready: called with the bound host and port once requests are taken.

    Returns:
        The exit status: 0 if every request was finished, 1 if some were cut off.
    """
    return HttpServer(
        app, listener, drain_timeout_s=drain_timeout_s, trusted_proxies=trusted_proxies, on_ready=on_ready
    ).run()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which nobody can connect to yet; port 0: any free one.

    Raises:
        OSError: the address cannot be listened on.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # "localhost" may be both; clients that are told 127.0.0.1 are more than those that are told ::1.
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    # With the protocol spelled out, for asyncio sets TCP_NODELAY only where it sees TCP's number. Without it every
    # response waits 40 ms for the client's delayed acknowledgement of its headers.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


class HttpServer:
    """One run of a server. Signals are handled when it runs in the main thread; `stop` works from any thread."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        *,
        drain_timeout_s: float = 120.0,
        trusted_proxies: str = "",
        on_ready: OnReady | None = None,
    ):
        self._service: Service = app.state.service
        self._listener = listener
        self._drain_timeout_s = drain_timeout_s
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._signalled = False
        limits = self._service.llm.limits
        self.connections = Connections(limits, most_connections())
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=protocol_for(self.connections),
                ws="none",
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=trusted_proxies,
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                # Everything has been drained before uvicorn's own shutdown; this is for connections that stay open.
                timeout_graceful_shutdown=3,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    def run(self) -> int:
        """Serves until stopped. See `serve`."""
        with self._listener as listener, self._handled_signals():
            listener.listen(BACKLOG)
            return asyncio.run(self._run(listener))

    def stop(self) -> None:
        """Begins to drain, as the first SIGTERM does. Returns at once."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            # A loop that is closed by now has stopped already.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stopping.set)

    async def _run(self, listener: socket.socket) -> int:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(AcceptErrors())
        if self._signalled:
            self._stopping.set()
        server = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        stopping = asyncio.create_task(self._stopping.wait())
        finished = True
        try:
            while not self._uvicorn.started and not server.done():
                await asyncio.sleep(0.01)
            if self._uvicorn.started:
                host, port = listener.getsockname()[:2]
                log.info("listening on %s port %d", host, port)
                if self._on_ready is not None:
                    self._on_ready(host, port)
            await asyncio.wait((server, stopping), return_when=asyncio.FIRST_COMPLETED)
            log.info("finishing %d running requests, taking no new ones", self._service.gate.active)
            # The listener stays open meanwhile, so that /health can say what is going on.
            finished = await self._service.close(self._drain_timeout_s)
        finally:
            self._uvicorn.should_exit = True
            stopping.cancel()
            await server
        log.info("stopped" if finished else "stopped; some requests did not finish in time")
        return 0 if finished else 1

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            # Device work in other threads cannot be interrupted, so there is nothing to be tidy about.
            logging.shutdown()
            os._exit(128 + number)
        self._signalled = True
        self.stop()


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers: they would close connections to new clients while old ones are served."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
