"""The structure of a request's messages, checked part by part before any media are touched."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from epdjax.serving.errors import InvalidRequest
from epdjax.serving.http.payloads import Payloads
from epdjax.serving.media.sources import DataURL

ROLES = ("system", "developer", "user", "assistant")
DETAILS = ("auto", "low", "high")
NOUNS = {"image": "picture", "video": "video", "audio": "clip"}
EXAMPLES = {
    "image": "data:image/png;base64,...",
    "video": "data:video/mp4;base64,...",
    "audio": "data:audio/wav;base64,...",
}
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "m4a", "aac")
# Message fields of features that are not there, with the values that clients send back from an answer and that say
# nothing. Leaving any other value out would change the conversation.
EMPTY_FIELDS: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_call_id": ("",),
    "tool_calls": ([],),
}
HARMLESS_FIELDS = ("name",)  # of messages: the model is not told it
HARMLESS_PART_FIELDS = ("cache_control",)  # everything is cached by content here


def validate_messages(messages: list[dict[str, Any]], payloads: Payloads) -> list[dict[str, Any]]:
    """Checks messages and brings them to one form, their media put in.

    Content stays a string, or becomes a list of `{"type": "text", "text": ...}` and
    `{"type": "image_url", "image_url": ...}` with a string or a `DataURL` (likewise `video_url`, `audio_url`;
    `input_audio` becomes an `audio_url`). `developer` becomes `system`, the name chat templates know.

    Raises:
        InvalidRequest: names the message and part, and says what to change.
    """
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message", param="messages")
    return [_message(message, f"messages[{i}]", payloads) for i, message in enumerate(messages)]


def _message(message: Mapping[str, Any], path: str, payloads: Payloads) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise InvalidRequest(f"{path}.role is missing; use one of {', '.join(ROLES)}", param=f"{path}.role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{path}.role {_shown(role)} is unknown; use one of {', '.join(ROLES)}", param=f"{path}.role"
        )
    for field, empty in EMPTY_FIELDS.items():
        if message.get(field) is not None and message[field] not in empty:
            raise InvalidRequest(f"{path}.{field} is not supported; leave it out", param=f"{path}.{field}")
    _check_fields(message, ("role", "content"), (*EMPTY_FIELDS, *HARMLESS_FIELDS), path)
    content = message.get("content")
    path = f"{path}.content"
    if content is None:
        raise InvalidRequest(f"{path} is missing; give a string or a list of parts", param=path)
    if isinstance(content, list):
        if not content:
            raise InvalidRequest(f"{path} is empty; give at least one part, or a string", param=path)
        content = [_part(part, f"{path}[{j}]", role, payloads) for j, part in enumerate(content)]
    elif isinstance(content, str):
        content = payloads.text(content)
    else:
        raise InvalidRequest(f"{path} must be a string or a list of parts", param=path)
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, path: str, role: str, payloads: Payloads) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise InvalidRequest(f'{path} must be an object with a type, such as {{"type": "text", ...}}', param=path)
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{path}.text must be a string", param=f"{path}.text")
        _check_fields(part, ("type", "text"), HARMLESS_PART_FIELDS, path)
        return {"type": "text", "text": payloads.text(part["text"])}
    media = "audio" if kind == "input_audio" else str(kind).removesuffix("_url")
    if not isinstance(kind, str) or media not in NOUNS:
        raise InvalidRequest(
            f"{path}.type {_shown(kind)} is not supported; use text, image_url, video_url, audio_url or input_audio",
            param=f"{path}.type",
        )
    if role != "user":
        noun = NOUNS[media]
        raise InvalidRequest(f"{path} is a {noun} in a {role} message; put {noun}s in user messages", param=path)
    _check_fields(part, ("type", kind), HARMLESS_PART_FIELDS, path)
    given, path = part.get(kind), f"{path}.{kind}"
    url = _input_audio(given, path, payloads) if kind == "input_audio" else payloads.url(_url(given, path, media))
    return {"type": f"{media}_url", f"{media}_url": url}


def _input_audio(given: Any, path: str, payloads: Payloads) -> str | DataURL:
    """OpenAI's form of sound in a request, as a data URL."""
    if not isinstance(given, dict):
        raise InvalidRequest(f'{path} must be an object: {{"data": base64, "format": "wav"}}', param=path)
    _check_fields(given, ("data", "format"), (), path)
    if given.get("format") not in AUDIO_FORMATS:
        raise InvalidRequest(f"{path}.format must be one of {', '.join(AUDIO_FORMATS)}", param=f"{path}.format")
    if not isinstance(given.get("data"), str) or not given["data"]:
        raise InvalidRequest(f"{path}.data is missing: give the base64 of the file", param=f"{path}.data")
    head, data = f"data:audio/{given['format']};base64,", payloads.url(given["data"])
    return f"{head}{data}" if isinstance(data, str) else DataURL(head, data.base64)


def _url(given: Any, path: str, media: str) -> str:
    url, hint = given, f"give a data: URL such as '{EXAMPLES[media]}'"
    if isinstance(given, dict):
        url = given.get("url")
        _check_fields(given, ("url", "detail"), (), path)
        if given.get("detail") not in (None, *DETAILS):
            raise InvalidRequest(
                f"{path}.detail must be one of {', '.join(DETAILS)} (media are always taken in full)",
                param=f"{path}.detail",
            )
        path = f"{path}.url"
    if url is None or url == "":
        raise InvalidRequest(f"{path} is missing: the part has no {NOUNS[media]}; {hint}", param=path)
    if not isinstance(url, str):
        raise InvalidRequest(f"{path} must be a string; {hint}", param=path)
    return url


def _check_fields(given: Mapping[str, Any], used: Sequence[str], ignored: Sequence[str], path: str) -> None:
    """Refuse fields that nobody knows: leaving them out could mean answering another question. `null` says nothing."""
    for field, value in given.items():
        if value is not None and field not in used and field not in ignored:
            near = difflib.get_close_matches(field[:50], used, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out"
            field = field[:50]
            raise InvalidRequest(f"{path}.{field} is not a known field; {hint}", param=f"{path}.{field}")


def _shown(value: Any) -> str:
    return repr(value[:50]) if isinstance(value, str) else f"of type {type(value).__name__}"
