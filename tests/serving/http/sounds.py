"""Sounds as a client sends them."""

import io
import struct
import wave
from typing import Any

import av
import numpy as np

RATE = 16000


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """int16 ``[samples, channels]``: a tone of 440 Hz, each further channel silent."""
    t = np.arange(int(seconds * rate)) / rate
    sound = np.zeros((len(t), channels), np.int16)
    sound[:, 0] = 20000 * np.sin(2 * np.pi * 440 * t)
    return sound


def wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.tobytes())
    return out.getvalue()


def float_wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    """Of float32 ``[samples, channels]``, as they are."""
    channels = sound.shape[1]
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, channels, rate, rate * channels * 4, channels * 4, 32)
    data = sound.astype("<f4").tobytes()
    body = b"WAVE" + kind + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def compressed(sound: np.ndarray, codec: str, container: str, rate: int = RATE, **options: Any) -> bytes:
    """Of int16 ``[samples, channels]``; `options` are the codec's."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]]
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=layout)
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return out.getvalue()
