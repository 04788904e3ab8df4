"""Videos as a client sends them."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def film(
    frames: int,
    fps: int = 10,
    width: int = 64,
    height: int = 48,
    *,
    container: str = "mp4",
    codec: str = "mpeg4",
    seconds: Sequence[float] | None = None,
    declared: int | None = None,
    corner: bool = False,
) -> bytes:
    """Frame i is of one gray, 8 * i (and small enough that the codec keeps it).

    Args:
        frames: how many.
        fps: frames per second.
        width, height: in pixels.
        container, codec: FFmpeg's names.
        seconds: when each frame is shown; None: as `fps` says.
        declared: frames per second by the header; None: `fps`.
        corner: whether the upper left quarter is white.
    """
    out = io.BytesIO()
    tick = Fraction(1, 1000) if seconds is not None or declared else Fraction(1, fps)
    times = seconds if seconds is not None else [i / fps for i in range(frames)]
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=declared or fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = tick
        for i in range(frames):
            gray = np.full((height, width, 3), min(255, 8 * i), np.uint8)
            if corner:
                gray[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24")
            frame.pts, frame.time_base = round(times[i] / tick), tick
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return out.getvalue()


def held(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose track header says how to turn it: the point (x, y) is shown at (a x + c y, b x + d y)."""
    at = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:at] + matrix + data[at + len(matrix) :]


def broken(data: bytes, packets: Sequence[int]) -> bytes:
    """A file whose packets of these numbers are destroyed, in the first of its streams."""
    out = bytearray(data)
    with av.open(io.BytesIO(data)) as file:
        for i, packet in enumerate(file.demux(file.streams[0])):
            if i in packets:
                assert packet.pos is not None
                out[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    return bytes(out)
