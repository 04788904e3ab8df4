"""How the processes of an abuse test speak: what they wait for, and the requests that good and bad clients make."""

import base64
import io
import json
import random

from PIL import Image

READY = "ready"
"""What a process prints when it is."""
MODEL_NAME = "abused"


def chat_body(content: object, **fields: object) -> bytes:
    """A request's body: one user message, an answer of a few tokens."""
    request = {"model": MODEL_NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}
    return json.dumps(request).encode()


def chat_head(length: int, path: str = "/v1/chat/completions") -> bytes:
    """The head of a request whose body has so many bytes, and after which the connection ends."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def picture_part(data: bytes) -> dict[str, object]:
    """A part of a message."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    colour = tuple(random.Random(seed).randrange(256) for _ in range(3))
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()
