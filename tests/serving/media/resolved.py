"""Messages with their media decoded, in this process: what the server does of it in several steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.audio import load_audio
from epdjax.serving.media.images import load_image
from epdjax.serving.media.loading import MediaLoader, MediaNeeds, fetched
from epdjax.serving.media.parts import TextBounds, split_messages
from epdjax.serving.media.sources import Kind
from epdjax.serving.media.video import load_video

BOUNDS = TextBounds(characters=10_000, parts=100)


class InProcess:
    """In place of a `DecoderPool`."""

    def __init__(self, limits: ServingLimits):
        self._limits = limits

    def load(self, kind: Kind, source: Any, *, deadline: float, reserve: Any, sample: Any = None, rate: int = 0) -> Any:
        hooks = {"deadline": deadline}
        if kind.mime == "image":
            return load_image(source, self._limits, **hooks)
        if kind.mime == "audio":
            return load_audio(source, self._limits, rate, **hooks)
        return load_video(source, self._limits, sample, **hooks)


class Pictures:
    """What a model that takes pictures alone needs."""

    placeholders: Mapping[str, str] = {"image": "<image>"}
    sampling_rate = 16000

    def sample_frames(self, frames: int, fps: float) -> Any:
        raise AssertionError


def resolve_messages(
    messages: Sequence[Mapping[str, Any]], limits: ServingLimits, needs: MediaNeeds | None = None
) -> list[dict[str, Any]]:
    needs = needs or Pictures()
    plain, media = split_messages(messages, limits, BOUNDS, needs.placeholders)
    loader = MediaLoader(InProcess(limits), limits, needs, deadline=float("inf"))  # type: ignore[arg-type]
    decoded = iter([loader.load(fetched(part, limits, float("inf")), lambda size, until: None) for part in media])
    for message in plain:
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] != "text":
                    part[part["type"]] = next(decoded)
    return plain
