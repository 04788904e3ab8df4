"""Messages with media still encoded, to messages with decoded media."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from epdjax.serving.errors import InvalidRequest, MediaError, RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.audio import load_audio
from epdjax.serving.media.images import load_image
from epdjax.serving.media.sources import CLIP, PICTURE, VIDEO, Kind
from epdjax.serving.media.video import load_video

KINDS: dict[str, Kind] = {"image": PICTURE, "video": VIDEO, "audio": CLIP}
PART_KINDS = {name: kind for kind in KINDS for name in (kind, f"{kind}_url")} | {"input_audio": "audio"}


class MediaNeeds(Protocol):
    """What a model wants of media; every `models.processing.base.Processor` says it."""

    @property
    def placeholders(self) -> Mapping[str, str]:
        """Its keys are the kinds of media that the model takes."""
        ...

    @property
    def sampling_rate(self) -> int: ...

    def sample_frames(self, frames: int, fps: float) -> np.ndarray: ...


def resolve_messages(
    messages: Sequence[Mapping[str, Any]], limits: ServingLimits, needs: MediaNeeds | None = None
) -> list[dict[str, Any]]:
    """Replaces every media part of OpenAI-style messages by decoded media.

    Parts are `{"type": "image_url", "image_url": {"url": ...} or a string}`, likewise `video_url` and `audio_url`;
    `{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}`; and `{"type": "image", "image": ...}`,
    `video`, `audio` with anything the loaders take. They become the latter, decoded. All else stays as it is.

    Args:
        needs: of the model; None: pictures alone.

    Raises:
        InvalidRequest: a part that is neither text nor media that the model takes, or a media part without media.
        MediaError: media that cannot be had or afforded. `param` and the text say which.
    """
    taken = set(needs.placeholders) if needs is not None else {"image"}
    found = [PART_KINDS.get(str(_type(part))) for message in messages for part in _parts(message)]
    for kind, noun in KINDS.items():
        most = getattr(limits, f"max_{kind}s_per_request")
        if (count := found.count(kind)) > most:
            raise MediaError(
                f"the request has {count} {noun.noun}s; at most {most} are allowed: leave some out", param="messages"
            )
    deadline = time.monotonic() + limits.media_timeout_s
    budget = _Pixels(limits)
    resolved = []
    for i, message in enumerate(messages):
        content: Any = message.get("content")
        if isinstance(content, (list, tuple)):
            content = [
                _resolve_part(part, f"messages[{i}].content[{j}]", limits, needs, taken, deadline, budget)
                for j, part in enumerate(content)
            ]
        resolved.append({**message, "content": content})
    return resolved


class _Pixels:
    """Counts the pixels of a request's pictures and frames."""

    def __init__(self, limits: ServingLimits):
        self.left = self.most = limits.max_request_pixels

    def spend(self, pixels: int, path: str) -> None:
        self.left -= pixels
        if self.left < 0:
            raise MediaError(
                f"the request's pictures have more than {self.most} pixels together; send fewer or smaller pictures",
                param=path,
            )


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, (list, tuple)) else ()


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def _resolve_part(
    part: Any,
    path: str,
    limits: ServingLimits,
    needs: MediaNeeds | None,
    taken: set[str],
    deadline: float,
    budget: _Pixels,
) -> dict[str, Any]:
    name = _type(part)
    if name == "text" and isinstance(part.get("text"), str):
        return dict(part)
    kind = PART_KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InvalidRequest(f"{path} is neither a text nor a picture, video or audio part", param=path)
    if kind not in taken:
        known = ", ".join(["text", *sorted(taken)])
        raise InvalidRequest(f"{path}: this model takes no {kind} input; it takes {known}", param=path)
    source = part.get(name)
    path = f"{path}.{name}"
    if name == "input_audio" and isinstance(source, Mapping):
        source = f"data:audio/{source.get('format') or 'wav'};base64,{source.get('data') or ''}"
    elif isinstance(source, Mapping):
        source = source.get("url")
    if source is None or (isinstance(source, str) and source == ""):
        noun, example = KINDS[kind].noun, KINDS[kind].example
        raise InvalidRequest(f"{path} has no {noun}; give a data: URL such as '{example}...'", param=path)
    try:
        if kind == "image":
            image = load_image(source, limits, deadline=deadline)
            budget.spend(image.width * image.height, path)
            return {"type": kind, kind: image}
        assert needs is not None
        if kind == "audio":
            return {"type": kind, kind: load_audio(source, limits, needs.sampling_rate, deadline=deadline)}
        video = load_video(source, limits, needs.sample_frames, deadline=deadline)
        budget.spend(video.frames.size // 3, path)
        return {"type": kind, kind: video}
    except RequestError as error:
        if error.param == path:
            raise
        raise MediaError(f"{path}: {error.message}", param=path) from None
