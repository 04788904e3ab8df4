"""Sounds as a client sends them."""

import io
import wave

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


def compressed(sound: np.ndarray, codec: str, container: str, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound.T, format="s16", layout="mono")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return out.getvalue()
