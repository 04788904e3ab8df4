"""Media of a request: found, bounded, decoded. Everything here comes from outside and is believed in nothing.

Pictures leave as plain RGB: the EXIF orientation applied, transparency put on white, 16 bits brought to 8, the first
frame of an animation. Nothing is resized. All functions are synchronous and thread-safe.
"""

import base64
import binascii
import io
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from epdjax.serving.errors import InvalidRequest, MediaError, RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.remote import fetch

FORMATS = "PNG, JPEG, WebP, GIF or BMP"
DATA_URL = re.compile(r"data:(?P<mime>[^;,]*)(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resolve_messages(messages: Sequence[Mapping[str, Any]], limits: ServingLimits) -> list[dict[str, Any]]:
    """Replaces every media part of OpenAI-style messages by `{"type": "image", "image": <RGB picture>}`.

    Picture parts are `{"type": "image_url", "image_url": {"url": ...} or a string}` and
    `{"type": "image", "image": ...}` with anything `load_image` takes. All else of a message stays as it is.

    Raises:
        InvalidRequest: a part that is neither text nor a picture, or a picture part without a picture.
        MediaError: a picture that cannot be had or afforded. `param` and the text say which one.
    """
    found = [part for message in messages for part in _parts(message) if _kind(part) in ("image", "image_url")]
    if len(found) > limits.max_images_per_request:
        raise MediaError(
            f"the request has {len(found)} pictures; at most {limits.max_images_per_request} are allowed: "
            "leave some out",
            param="messages",
        )
    deadline = time.monotonic() + limits.media_timeout_s
    pixels = 0
    resolved = []
    for i, message in enumerate(messages):
        content: Any = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = []
            for j, part in enumerate(content):
                path = f"messages[{i}].content[{j}]"
                part = _resolve_part(part, path, limits, deadline)
                if part["type"] == "image":
                    pixels += part["image"].width * part["image"].height
                    if pixels > limits.max_request_pixels:
                        raise MediaError(
                            f"the request's pictures have more than {limits.max_request_pixels} pixels together; "
                            "send fewer or smaller pictures",
                            param=path,
                        )
                parts.append(part)
            content = parts
        resolved.append({**message, "content": content})
    return resolved


def load_image(
    source: str | bytes | Image.Image, limits: ServingLimits, *, deadline: float | None = None
) -> Image.Image:
    """Makes an RGB picture of what a request gives for one.

    Args:
        source: a `data:` URL; an http(s) URL, if remote media are allowed; a `file:` URL or a path, if it lies below
            the allowed folder (relative paths start there); the bytes of an encoded picture; or a picture.
        limits: what is allowed.
        deadline: `time.monotonic()` at which to give up a download.

    Raises:
        MediaError: says what to change, and never shows addresses or paths of the server.
    """
    if isinstance(source, Image.Image):
        picture = source
        _check_size(picture.width, picture.height, limits)
        return _guarded(lambda: _to_rgb(picture))
    if isinstance(source, str):
        source = _read(source, limits, deadline)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise MediaError(f"a picture must be a URL, bytes or a PIL image, not {type(source).__name__}")
    data = bytes(source)
    if not data:
        raise MediaError("the picture is empty; give its data")
    if len(data) > limits.max_image_bytes:
        raise MediaError(
            f"the picture's file has {len(data)} bytes; at most {limits.max_image_bytes} are allowed: "
            "send a smaller one"
        )
    return _decode(data, limits)


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, (list, tuple)) else ()


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def _resolve_part(part: Any, path: str, limits: ServingLimits, deadline: float) -> dict[str, Any]:
    kind = _kind(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    if kind not in ("image", "image_url"):
        raise InvalidRequest(f"{path} is neither a text nor a picture part", param=path)
    source = part.get(kind)
    if isinstance(source, Mapping):
        source = source.get("url")
    path = f"{path}.{kind}"
    if source is None or source == "":
        raise InvalidRequest(f"{path} has no picture; give a data: URL such as 'data:image/png;base64,...'", param=path)
    try:
        return {"type": "image", "image": load_image(source, limits, deadline=deadline)}
    except RequestError as error:
        raise MediaError(f"{path}: {error.message}", param=path) from None


def _read(source: str, limits: ServingLimits, deadline: float | None) -> bytes:
    """The bytes behind a URL or path."""
    text = source.strip()
    scheme = text[: text.find(":")].lower() if SCHEME.match(text) else ""
    if scheme == "data":
        return _read_data_url(text, limits)
    if scheme in ("http", "https"):
        if not limits.allow_remote_media:
            raise MediaError(
                "remote pictures are switched off here; send the picture as a data: URL "
                "('data:image/png;base64,...'), or start the server with --allow-remote-media"
            )
        return fetch(text, limits, deadline=deadline)
    if scheme not in ("", "file"):
        raise MediaError("pictures are read from data: URLs ('data:image/png;base64,...'), not from this kind of URL")
    if limits.allowed_local_media_path is None:
        raise MediaError(
            "this is no data: URL ('data:image/png;base64,...'), and reading local files is switched off here "
            "(--allowed-local-media-path)"
        )
    return _read_file(text, scheme, limits.allowed_local_media_path, limits)


def _read_data_url(text: str, limits: ServingLimits) -> bytes:
    head = DATA_URL.match(text, endpos=min(len(text), 1024))
    if head is None:
        raise MediaError("the data: URL is malformed; write 'data:image/png;base64,' and the base64 of the file")
    mime = head["mime"].strip().lower()
    if mime and not mime.startswith("image/"):
        raise MediaError("the data: URL's media type is not a picture's; write for example 'data:image/png;base64,...'")
    if "base64" not in [option.strip().lower() for option in head["options"].split(";")]:
        raise MediaError("the data: URL is not base64; write 'data:image/png;base64,' and the base64 of the file")
    size = (len(text) - head.end()) * 3 // 4
    if size > limits.max_image_bytes + 2:
        raise MediaError(
            f"the picture's file has about {size} bytes; at most {limits.max_image_bytes} are allowed: "
            "send a smaller one"
        )
    if size == 0:
        raise MediaError("the data: URL has no data; put the base64 of the file after the comma")
    try:
        return base64.b64decode(memoryview(text.encode("ascii"))[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(
            "the base64 of the picture is broken: use the standard alphabet (+ and /), '=' padding, and no line breaks"
        ) from None


def _read_file(text: str, scheme: str, root: Path, limits: ServingLimits) -> bytes:
    # One text for "not there" and "not allowed": the difference would let a client feel its way around the disk.
    refused = MediaError("the file is not there, or not below the folder that this server reads pictures from")
    try:
        if scheme == "file":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise refused
            text = unquote(parts.path)
        root = root.resolve(strict=True)
        path = (root / text).resolve(strict=True)
        if not path.is_relative_to(root):
            raise refused
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused
            return file.read(limits.max_image_bytes + 1)
    except (OSError, ValueError, RuntimeError):
        raise refused from None


def _plugin(data: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    # By content, not by name; and one plugin rather than `Image.open`, which tries several and holds pictures to a
    # process-wide pixel limit of its own, with warnings.
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    return None


def _decode(data: bytes, limits: ServingLimits) -> Image.Image:
    plugin = _plugin(data)
    if plugin is None:
        raise MediaError(f"the data is not a picture in a known format; send {FORMATS}")

    def decode() -> Image.Image:
        with plugin(io.BytesIO(data)) as picture:
            # From the header alone: a bomb is refused before a pixel of it exists.
            _check_size(picture.width, picture.height, limits)
            picture.load()
            return _to_rgb(picture)

    return _guarded(decode)


def _guarded(decode: Callable[[], Image.Image]) -> Image.Image:
    try:
        return decode()
    except RequestError:
        raise
    except Exception:
        # Decoders raise nearly anything on broken data, and their texts show addresses of objects.
        raise MediaError(f"the picture is damaged or incomplete; send the whole file, as {FORMATS}") from None


def _check_size(width: int, height: int, limits: ServingLimits) -> None:
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"the picture is {width}x{height}; at most {limits.max_image_pixels} pixels are allowed: send a smaller one"
        )
    if min(width, height) < limits.min_image_side:
        raise MediaError(
            f"the picture is {width}x{height}; each side must have at least {limits.min_image_side} pixels: "
            "send a larger one"
        )
    if max(width, height) > limits.max_image_aspect_ratio * min(width, height):
        raise MediaError(
            f"the picture is {width}x{height}; the longer side may be at most {limits.max_image_aspect_ratio:g} times "
            "the shorter: crop it"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    turn = _orientation(picture)
    if type(picture) is Image.Image and picture.mode == "RGB" and "transparency" not in picture.info and turn is None:
        return picture
    if picture.mode.startswith("I"):
        # PIL would clip 16-bit gray at 255 instead of scaling it.
        gray = np.clip(np.asarray(picture), 0, 0xFFFF) >> 8
        picture = Image.fromarray(gray.astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, (255, 255, 255))
        picture.paste(rgba, mask=rgba.getchannel("A"))
    else:
        picture = picture.convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info.clear()
    return picture


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION_TAG, 1))
    except Exception:
        # Broken metadata are no reason to refuse a whole picture: viewers ignore them too.
        return None
