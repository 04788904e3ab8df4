"""Pictures, good and bad, as bytes and as data URLs."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 32, height: int = 24, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise, so that compression leaves enough to truncate."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of equal rows, of any depth and colour type, with a transparent colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress((b"\0" + row) * height)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few kB that would fill gigabytes: its header is true, its pixels compress to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * 1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
