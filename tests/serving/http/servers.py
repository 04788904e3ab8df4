"""A real server on a real port, in a thread, for tests."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from epdjax.serving.http import HttpServer, bind, create_app
from epdjax.serving.http.engine import Engine
from epdjax.serving.http.service import Service


class RunningServer:
    """Where it is, and how to stop it."""

    def __init__(
        self,
        engine: Engine,
        *,
        drain_timeout_s: float = 5.0,
        admin_key: str | None = None,
        trusted_proxies: str = "",
    ):
        self.engine = engine
        self.exit_status: int | None = None
        self._ready = threading.Event()
        app = create_app(engine, admin_key=admin_key)
        self.service: Service = app.state.service
        self._server = HttpServer(
            app,
            bind("127.0.0.1", 0),
            drain_timeout_s=drain_timeout_s,
            trusted_proxies=trusted_proxies,
            on_ready=self._set_address,
        )
        self.connections = self._server.connections
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"

    def _run(self) -> None:
        self.exit_status = self._server.run()

    def _set_address(self, host: str, port: int) -> None:
        self.url = f"http://{host}:{port}"
        self._ready.set()

    def begin_stop(self) -> None:
        self._server.stop()

    def join(self) -> int | None:
        """Waits for the end; the exit status."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"
        return self.exit_status


@contextlib.contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[RunningServer]:
    """A server around an engine until the end of the block; `settings` are `RunningServer`'s."""
    server = RunningServer(engine, **settings)
    try:
        yield server
    finally:
        server.begin_stop()
        server.join()
