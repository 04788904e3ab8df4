"""What the HTTP server needs of an engine; `AsyncLLM` is one."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.parts import TextBounds
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams, Urgency


class EngineHealth(Protocol):
    """How an engine is doing."""

    @property
    def ok(self) -> bool: ...

    @property
    def status(self) -> str: ...

    @property
    def detail(self) -> dict[str, Any]: ...


class Administered(Protocol):
    """An engine whose instances can change roles. Both block, and are called from any thread."""

    def roles(self) -> dict[str, Any]:
        """Which instance does what, and the load."""
        ...

    def change_roles(self, instance: str, roles: str, *, devices: int = 1, dry_run: bool = False) -> dict[str, Any]:
        """Give an instance other roles; returns what has changed."""
        ...


class Engine(Administered, Protocol):
    """An engine that answers messages."""

    @property
    def model_name(self) -> str: ...

    @property
    def limits(self) -> ServingLimits: ...

    @property
    def text_bounds(self) -> TextBounds:
        """How much text a request may have."""
        ...

    async def prepare(self, messages: list[dict[str, Any]], client: str = "") -> Any:
        """Messages made ready for `generate`: media fetched and decoded, texts tokenised."""
        ...

    def generate(
        self,
        messages: Any,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        urgency: Urgency,
    ) -> AsyncIterator[RequestOutput]:
        """Snapshots of the answer to what `prepare` made. Closing the iterator aborts the request and frees what it
        holds."""
        ...

    def health(self) -> EngineHealth: ...

    async def shutdown(self, *, drain: bool = True, timeout_s: float | None = None) -> None: ...
