"""Where media come from: data URLs, downloads, local files, bytes. Everything from outside is believed in nothing.

All functions here and in the modules beside it are synchronous and thread-safe.
"""

import base64
import binascii
import dataclasses
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits

DATA_URL = re.compile(r"data:(?P<mime>[^;,]*)(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of media, as errors speak of it and limits bound it.

    Attributes:
        noun: "picture". mime: what its media types begin with. example: of a data URL.
    """

    noun: str
    mime: str
    example: str

    def max_bytes(self, limits: ServingLimits) -> int:
        """Most bytes of one file."""
        return int(getattr(limits, f"max_{self.mime}_bytes"))


@dataclasses.dataclass(frozen=True, eq=False)
class DataURL:
    """A data URL whose base64 lies in the buffer that it came in.

    Attributes:
        head: up to the comma and with it; empty where only the base64 was given.
        base64: ASCII.
    """

    head: str
    base64: memoryview

    def __str__(self) -> str:
        return self.head + str(self.base64, "ascii", "replace")


Reserve = Callable[[int], None]
"""Told of the bytes that decoded media will take, before they are there; raises where there is no room for them."""


def no_reserve(size: int) -> None:
    """Where nothing is counted."""


PICTURE = Kind("picture", "image", "data:image/png;base64,")
VIDEO = Kind("video", "video", "data:video/mp4;base64,")
CLIP = Kind("clip", "audio", "data:audio/wav;base64,")


def is_data_url(text: str) -> bool:
    """Whether a URL or path carries its data itself."""
    return text.lstrip()[:5].lower() == "data:"


def read(source: object, kind: Kind, limits: ServingLimits, deadline: float | None = None) -> bytes:
    """The bytes of an encoded media file, bounded.

    Args:
        source: a `data:` URL; an http(s) URL, if remote media are allowed; a `file:` URL or a path, if it lies below
            the allowed folder (relative paths start there); or the bytes themselves.
        kind: what it has to be.
        limits: what is allowed.
        deadline: `time.monotonic()` at which to give up a download.

    Raises:
        MediaError: says what to change, and never shows addresses or paths of the server.
    """
    if isinstance(source, (str, DataURL)):
        source = _read_url(str(source), kind, limits, deadline)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise MediaError(f"a {kind.noun} must be a URL, bytes or decoded already, not {type(source).__name__}")
    data = bytes(source)
    if not data:
        raise MediaError(f"the {kind.noun} is empty; give its data")
    if len(data) > kind.max_bytes(limits):
        raise MediaError(
            f"the {kind.noun}'s file has {len(data)} bytes; at most {kind.max_bytes(limits)} are allowed: "
            "send a smaller one"
        )
    return data


def check_size(width: int, height: int, kind: Kind, limits: ServingLimits) -> None:
    """Refuse pictures and frames of too many pixels, or too thin.

    Raises:
        MediaError: says which bound.
    """
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"the {kind.noun} is {width}x{height}; at most {limits.max_image_pixels} pixels are allowed: "
            "send a smaller one"
        )
    if min(width, height) < limits.min_image_side:
        raise MediaError(
            f"the {kind.noun} is {width}x{height}; each side must have at least {limits.min_image_side} pixels: "
            "send a larger one"
        )


def _read_url(source: str, kind: Kind, limits: ServingLimits, deadline: float | None) -> bytes:
    """The bytes behind a URL or path."""
    text = source.strip()
    scheme = text[: text.find(":")].lower() if SCHEME.match(text) else ""
    if scheme == "data":
        return _read_data_url(text, kind, limits)
    if scheme in ("http", "https"):
        if not limits.allow_remote_media:
            raise MediaError(
                f"remote media are switched off here; send the {kind.noun} as a data: URL "
                f"('{kind.example}...'), or start the server with --allow-remote-media"
            )
        # Imported here: decoder processes, which get data and no addresses, do without an HTTP client.
        from epdjax.serving.media.remote import fetch

        return fetch(text, limits, deadline=deadline, max_bytes=kind.max_bytes(limits), accept=f"{kind.mime}/*")
    if scheme not in ("", "file"):
        raise MediaError(f"media are read from data: URLs ('{kind.example}...'), not from this kind of URL")
    if limits.allowed_local_media_path is None:
        raise MediaError(
            f"this is no data: URL ('{kind.example}...'), and reading local files is switched off here "
            "(--allowed-local-media-path)"
        )
    return _read_file(text, scheme, limits.allowed_local_media_path, kind.max_bytes(limits))


def _read_data_url(text: str, kind: Kind, limits: ServingLimits) -> bytes:
    head = DATA_URL.match(text, endpos=min(len(text), 1024))
    if head is None:
        raise MediaError(f"the data: URL is malformed; write '{kind.example}' and the base64 of the file")
    mime = head["mime"].strip().lower()
    if mime and not mime.startswith(f"{kind.mime}/"):
        raise MediaError(
            f"the data: URL's media type is not that of a {kind.noun}; write for example '{kind.example}...'"
        )
    if "base64" not in [option.strip().lower() for option in head["options"].split(";")]:
        raise MediaError(f"the data: URL is not base64; write '{kind.example}' and the base64 of the file")
    size = (len(text) - head.end()) * 3 // 4
    if size > kind.max_bytes(limits) + 2:
        raise MediaError(
            f"the {kind.noun}'s file has about {size} bytes; at most {kind.max_bytes(limits)} are allowed: "
            "send a smaller one"
        )
    if size == 0:
        raise MediaError("the data: URL has no data; put the base64 of the file after the comma")
    try:
        return base64.b64decode(memoryview(text.encode("ascii"))[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(
            f"the base64 of the {kind.noun} is broken: use the standard alphabet (+ and /), '=' padding, and no line "
            "breaks"
        ) from None


def _read_file(text: str, scheme: str, root: Path, max_bytes: int) -> bytes:
    # One text for "not there" and "not allowed": the difference would let a client feel its way around the disk.
    refused = MediaError("the file is not there, or not below the folder that this server reads media from")
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
            return file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError):
        raise refused from None
