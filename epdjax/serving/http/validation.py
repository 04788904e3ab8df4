"""The structure of a request's messages, checked part by part before any picture is touched."""

from collections.abc import Mapping
from typing import Any

from epdjax.serving.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant")
DETAILS = ("auto", "low", "high")
PICTURE_HINT = "give a data: URL such as 'data:image/png;base64,...'"
# Message fields of features that are not there; leaving their content out would change the conversation.
UNSUPPORTED = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal")


def validate_messages(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Checks messages and brings them to one form; whether there are pictures to resolve.

    Content stays a string, or becomes a list of `{"type": "text", "text": ...}` and
    `{"type": "image_url", "image_url": ...}` with a string. `developer` becomes `system`, the name chat templates know.

    Raises:
        InvalidRequest: names the message and part, and says what to change.
    """
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message", param="messages")
    checked = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    pictures = any(part["type"] != "text" for m in checked if isinstance(m["content"], list) for part in m["content"])
    return checked, pictures


def _message(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise InvalidRequest(f"{path}.role is missing; use one of {', '.join(ROLES)}", param=f"{path}.role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{path}.role {_shown(role)} is unknown; use one of {', '.join(ROLES)}", param=f"{path}.role"
        )
    for field in UNSUPPORTED:
        if message.get(field) not in (None, []):
            raise InvalidRequest(f"{path}.{field} is not supported; leave it out", param=f"{path}.{field}")
    content = message.get("content")
    path = f"{path}.content"
    if content is None:
        raise InvalidRequest(f"{path} is missing; give a string or a list of parts", param=path)
    if isinstance(content, list):
        if not content:
            raise InvalidRequest(f"{path} is empty; give at least one part, or a string", param=path)
        content = [_part(part, f"{path}[{j}]", role) for j, part in enumerate(content)]
    elif not isinstance(content, str):
        raise InvalidRequest(f"{path} must be a string or a list of parts", param=path)
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, path: str, role: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise InvalidRequest(f'{path} must be an object with a type, such as {{"type": "text", ...}}', param=path)
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{path}.text must be a string", param=f"{path}.text")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image_url", "image"):
        raise InvalidRequest(
            f"{path}.type {_shown(kind)} is not supported; use text or image_url", param=f"{path}.type"
        )
    if role != "user":
        raise InvalidRequest(f"{path} is a picture in a {role} message; put pictures in user messages", param=path)
    return {"type": "image_url", "image_url": _picture(part.get(kind), f"{path}.{kind}")}


def _picture(given: Any, path: str) -> str:
    url = given
    if isinstance(given, dict):
        url = given.get("url")
        if given.get("detail") not in (None, *DETAILS):
            raise InvalidRequest(
                f"{path}.detail must be one of {', '.join(DETAILS)} (pictures are always seen in full)",
                param=f"{path}.detail",
            )
        path = f"{path}.url"
    if url is None or url == "":
        raise InvalidRequest(f"{path} is missing: the part has no picture; {PICTURE_HINT}", param=path)
    if not isinstance(url, str):
        raise InvalidRequest(f"{path} must be a string; {PICTURE_HINT}", param=path)
    return url


def _shown(value: Any) -> str:
    return repr(value[:50]) if isinstance(value, str) else f"of type {type(value).__name__}"
