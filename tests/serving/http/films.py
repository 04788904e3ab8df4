"""Videos as a client sends them."""

import io

import av
import numpy as np


def film(frames: int, fps: int = 10, width: int = 64, height: int = 48) -> bytes:
    """Frame i is of one gray, 8 * i (and small enough that the codec keeps it)."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            gray = np.full((height, width, 3), min(255, 8 * i), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return out.getvalue()
