"""The parts of messages: texts counted, media found and checked for form, before anything is read or decoded."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from epdjax.serving.errors import InvalidRequest, MediaError, TooLong
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.sources import CLIP, PICTURE, VIDEO, Kind

KINDS: dict[str, Kind] = {"image": PICTURE, "video": VIDEO, "audio": CLIP}
PART_KINDS = {name: kind for kind in KINDS for name in (kind, f"{kind}_url")} | {"input_audio": "audio"}


@dataclasses.dataclass(frozen=True, eq=False)
class MediaPart:
    """A media part of a message.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        source: what the message gives for it: a URL, bytes, or media that are decoded already.
        path: where it stands, as errors name it.
    """

    kind: str
    source: Any
    path: str

    @property
    def noun(self) -> Kind:
        return KINDS[self.kind]


@dataclasses.dataclass(frozen=True)
class TextBounds:
    """What a request's texts may be before they are tokenised.

    Attributes:
        characters: of all texts together.
        parts: messages and their parts together.
    """

    characters: int
    parts: int


def split_messages(
    messages: Sequence[Mapping[str, Any]], limits: ServingLimits, bounds: TextBounds, taken: Collection[str]
) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Messages without their media, which keep their places, and the media.

    Parts are `{"type": "image_url", "image_url": {"url": ...} or a string}`, likewise `video_url` and `audio_url`;
    `{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}`; and `{"type": "image", "image": ...}`,
    `video`, `audio` with anything the loaders take. Of each `{"type": kind}` stays. All else stays as it is.

    Args:
        taken: kinds of media that the model takes.

    Raises:
        InvalidRequest: a part that is neither text nor media that the model takes, or a media part without media.
        TooLong: more text than could fit the model's context.
        MediaError: more media than are allowed.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of messages, not {type(messages).__name__}", param="messages")
    _check_texts(messages, bounds)
    plain, media = [], []
    for i, message in enumerate(messages):
        content: Any = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            parts = [_part(part, f"messages[{i}].content[{j}]", taken) for j, part in enumerate(content)]
            media += [part for part in parts if isinstance(part, MediaPart)]
            content = [{"type": part.kind} if isinstance(part, MediaPart) else part for part in parts]
        plain.append({**message, "content": content} if isinstance(message, Mapping) else message)
    kinds = [part.kind for part in media]
    for kind, noun in KINDS.items():
        most = getattr(limits, f"max_{kind}s_per_request")
        if (count := kinds.count(kind)) > most:
            raise MediaError(
                f"the request has {count} {noun.noun}s; at most {most} are allowed: leave some out", param="messages"
            )
    return plain, media


def check_text(text: str, bounds: TextBounds, param: str) -> None:
    """Refuse a text that cannot fit the context, by its characters alone, or that is none.

    Raises:
        TooLong: says how many there may be.
        InvalidRequest: says what it is.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"a prompt must be a text, not {type(text).__name__}", param=param)
    if len(text) > bounds.characters:
        raise _too_many(len(text), bounds, param)
    _check_whole(text, param)


def _check_texts(messages: Sequence[Mapping[str, Any]], bounds: TextBounds) -> None:
    parts = characters = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        pieces = content if isinstance(content, (list, tuple)) else [content]
        parts += 1 + len(pieces)
        if parts > bounds.parts:
            raise TooLong(
                f"the request has more than {bounds.parts} messages and parts, which its context could not hold; join "
                "some or leave some out",
                param="messages",
            )
        for piece in pieces:
            text = piece.get("text") if isinstance(piece, Mapping) else piece
            if isinstance(text, str):
                characters += len(text)
                if characters <= bounds.characters:
                    _check_whole(text, "messages")
    if characters > bounds.characters:
        raise _too_many(characters, bounds, "messages")


def _check_whole(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the text has half of a character in it (a lone surrogate); leave it out", param=param
        ) from None


def _too_many(characters: int, bounds: TextBounds, param: str) -> TooLong:
    return TooLong(
        f"the text has {characters} characters and can have at most {bounds.characters} here: no more would fit the "
        "context; shorten it",
        param=param,
    )


def _part(part: Any, path: str, taken: Collection[str]) -> dict[str, Any] | MediaPart:
    name = part.get("type") if isinstance(part, Mapping) else None
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
    return MediaPart(kind, source, path)
