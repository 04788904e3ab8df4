"""A small engine that answers as the last message tells it to, for tests of the HTTP layer alone.

The message is a few words: `count 5` (five tokens), `big` (256 kB each), `slow` (20 ms each), `stuck` (waits for ever
after the first), `late` (waits for ever before it), `broken`, `broken-later`, `bug`, `bug-later`, `aborted`,
`overloaded`, `sizes` (of its pictures).
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from epdjax.serving.errors import Overloaded, ServiceUnavailable, StepFailed
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.images import load_image
from epdjax.serving.media.parts import TextBounds, split_messages
from epdjax.serving.outputs import CompletionOutput, FinishReason, RequestOutput
from epdjax.serving.params import SamplingParams, Urgency
from epdjax.serving.role_plans import SwitchRefused


@dataclasses.dataclass
class ScriptedHealth:
    ok: bool
    status: str
    detail: dict[str, Any]


class ScriptedEngine:
    """Keeps count of what runs, what was seen, and what was closed early."""

    def __init__(self, limits: ServingLimits | None = None):
        self.model_name = "scripted"
        self.limits = limits or ServingLimits(
            max_images_per_request=4, max_image_pixels=4_000_000, max_body_bytes=2**21
        )
        self.running: set[str] = set()
        self.closed_early: list[str] = []
        self.seen: list[tuple[list[dict[str, Any]], SamplingParams]] = []
        self.clients: list[str] = []
        self.most_characters = 10_000_000
        self.shutdowns: list[bool] = []
        self._stopped = asyncio.Event()

    def health(self) -> ScriptedHealth:
        return ScriptedHealth(not self.shutdowns, "dead" if self.shutdowns else "ready", {"running": len(self.running)})

    def roles(self) -> dict[str, Any]:
        return {"mesh": "1E1P1D"}

    def change_roles(self, instance: str, roles: str, *, devices: int = 1, dry_run: bool = False) -> dict[str, Any]:
        if instance != "i1":
            raise SwitchRefused(f"there is no instance {instance!r}", param="instance")
        return {"instance": instance, "roles": roles, "devices": devices, "dry_run": dry_run}

    async def shutdown(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        self.shutdowns.append(drain)
        if not drain:
            self._stopped.set()

    @property
    def text_bounds(self) -> TextBounds:
        return TextBounds(self.most_characters, parts=1000)

    async def prepare(self, messages: list[dict[str, Any]], client: str = "") -> list[dict[str, Any]]:
        """Messages with their pictures decoded, in this process."""
        self.clients.append(client)
        plain, media = split_messages(messages, self.limits, self.text_bounds, {"image"})
        pictures = iter([load_image(part.source, self.limits) for part in media])
        for message in plain:
            if isinstance(message["content"], list):
                for part in message["content"]:
                    if part["type"] == "image":
                        part["image"] = next(pictures)
        return plain

    async def generate(
        self,
        messages: list[dict[str, Any]],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        urgency: Urgency,
    ) -> AsyncIterator[RequestOutput]:
        assert request_id is not None
        self.seen.append((messages, params))
        self.running.add(request_id)
        done = False
        try:
            content = messages[-1]["content"]
            parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
            words = " ".join(part["text"] for part in parts if part["type"] == "text").split()
            if "overloaded" in words:
                raise Overloaded("the queue is full; try again", retry_after_s=2.5)
            if "broken" in words:
                raise StepFailed("a step failed; send it again")
            if "bug" in words:
                raise KeyError("secret internals")
            if "late" in words:
                await self._forever()
            count = int(words[words.index("count") + 1]) if "count" in words else 3
            tokens = [f"tok{i} " for i in range(count)]
            if "big" in words:
                tokens = ["x" * 2**18] * count
            if "sizes" in words:
                tokens = [f"{p['image'].width}x{p['image'].height} " for p in parts if p["type"] == "image"]
            for i in range(len(tokens)):
                last = i == len(tokens) - 1
                reason: FinishReason | None = ("abort" if "aborted" in words else "stop") if last else None
                answer = CompletionOutput(0, "".join(tokens[: i + 1]), tuple(range(i + 1)), reason)
                yield RequestOutput(request_id, 7, (answer,), last)
                if "slow" in words:
                    await asyncio.sleep(0.02)
                if "stuck" in words:
                    await self._forever()
                if "broken-later" in words:
                    raise StepFailed("a step failed; send it again")
                if "bug-later" in words:
                    raise KeyError("secret internals")
            done = True
        finally:
            self.running.discard(request_id)
            if not done:
                self.closed_early.append(request_id)

    async def _forever(self) -> None:
        await self._stopped.wait()
        raise ServiceUnavailable("the server is shutting down; send the request again later")
