"""Counting what this process compiles, so that nobody has to believe that nothing is compiled while serving.

JAX reports every compilation to its monitoring listeners, on the thread that asked for it, whoever asked: a step, a
stray ``jnp`` call, other code of the process. Start-up marks its threads as `expected`; any other compilation after an
engine is ready is late, and logged.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Iterator

import jax.monitoring

log = logging.getLogger(__name__)

# Once for every program, whether the compiler ran or a cache on disk had it.
COMPILED = "/jax/core/compile/backend_compile_duration"
FOUND = "/jax/compilation_cache/cache_hits"  # before it, where a cache on disk had it


@dataclasses.dataclass(frozen=True)
class Compiled:
    """How much was compiled.

    Attributes:
        programs: made executable. cached: of them, those that a cache on disk had.
        late: those that no start-up asked for.
    """

    programs: int = 0
    cached: int = 0
    late: int = 0

    def __sub__(self, before: "Compiled") -> "Compiled":
        return Compiled(self.programs - before.programs, self.cached - before.cached, self.late - before.late)


class CompileCounter:
    """Counts the compilations of this process from its making on; see `compile_counter`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = Compiled()
        self._here = threading.local()
        self._ready = False
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    @property
    def count(self) -> Compiled:
        """All so far."""
        return self._count

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """What this thread compiles inside is part of a start-up."""
        before = getattr(self._here, "expected", False)
        self._here.expected = True
        try:
            yield
        finally:
            self._here.expected = before

    def ready(self) -> Compiled:
        """An engine is ready: from now on late compilations are logged. Returns the count."""
        self._ready = True
        return self._count

    def _on_event(self, event: str, **_: object) -> None:
        if event == FOUND:
            self._here.found = True

    def _on_duration(self, event: str, duration_secs: float, **about: object) -> None:
        if event != COMPILED:
            return
        found, self._here.found = getattr(self._here, "found", False), False
        late = not getattr(self._here, "expected", False)
        with self._lock:
            c = self._count
            self._count = Compiled(c.programs + 1, c.cached + found, c.late + late)
        if late and self._ready:
            where = threading.current_thread().name
            log.warning("compiled %s after ready, in %.2f s on thread %s", about.get("fun_name"), duration_secs, where)


@functools.cache
def compile_counter() -> CompileCounter:
    """The counter of this process. JAX's listeners belong to the process too, so there is one."""
    return CompileCounter()
