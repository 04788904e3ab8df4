"""Sound: decoded behind bounds, mixed to one channel, at the rate that the model's feature extractor wants."""

import numbers
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from epdjax.models.media import LOUDEST, Audio
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.containers import check_lost, check_time, decoded, opened
from epdjax.serving.media.given import named_path
from epdjax.serving.media.sources import CLIP, Reserve, no_reserve, read

FORMATS = "WAV, MP3, FLAC, OGG or M4A"
LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # of sound files; beyond them a small file becomes a large clip
FULL_SCALE = {
    "u8": 2.0**7,
    "s16": 2.0**15,
    "s32": 2.0**31,
    "s64": 2.0**63,
    "flt": 1.0,
    "dbl": 1.0,
}  # of FFmpeg's sample formats
RESERVE_S = 60.0  # of sound, whose room is asked for at a time
PIECE = 2**16  # samples that are resampled in one go


def load_audio(
    source: object,
    limits: ServingLimits,
    rate: int,
    *,
    deadline: float | None = None,
    reserve: Reserve = no_reserve,
) -> Audio:
    """Makes a clip of what a request gives for one.

    Args:
        source: see `sources.read`; a ``pathlib.Path``, which is read like a path in a string; an `Audio`; or
            ``(samples, rate)``, floating-point numbers of one axis, from -1 to 1, and how many of them make a second.
        limits: what is allowed.
        rate: samples per second.
        deadline: `time.monotonic()` at which to give up downloading and decoding.
        reserve: told of the bytes of its samples, minute by minute.

    Returns:
        One channel, the mean of those there are, resampled by FFmpeg where the rate differs.

    Raises:
        MediaError: says what to change.
    """
    deadline = time.monotonic() + limits.media_timeout_s if deadline is None else deadline
    if isinstance(source, Audio):
        pieces = _pieces(source.samples, source.rate)
    elif isinstance(source, tuple) and len(source) == 2:
        pieces = _pieces(*source)
    else:
        data = read(named_path(source), CLIP, limits, deadline)
        pieces = (piece for link in _links(data) for piece in _decode(link, deadline))
    samples = _Resampler(rate, limits, deadline, reserve).all(pieces)
    if not len(samples):
        raise MediaError("the clip has no sound; send one of at least a few hundredths of a second")
    return Audio(samples, rate)


Piece = tuple[np.ndarray, int]
"""Samples of one channel, float32 ``[n]``, and their rate."""


class _Resampler:
    """Brings pieces of sound to one rate, and checks what it is given before it makes more of it."""

    def __init__(self, rate: int, limits: ServingLimits, deadline: float, reserve: Reserve):
        self._rate, self._limits, self._deadline, self._reserve = rate, limits, deadline, reserve
        self._reserved_s = 0.0
        self._filter: av.AudioResampler | None = None
        self._from = rate
        self._seconds = 0.0
        self._made: list[np.ndarray] = []

    def all(self, pieces: Iterator[Piece]) -> np.ndarray:
        for samples, rate in pieces:
            check_time(self._deadline, CLIP)
            self._check(samples, rate)
            self._take(samples, rate)
        self._end()
        return np.concatenate(self._made) if self._made else np.zeros(0, np.float32)

    def _check(self, samples: np.ndarray, rate: int) -> None:
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise MediaError(
                f"the clip has {rate} samples per second; send one of {LOWEST_RATE} to {HIGHEST_RATE}: resample it"
            )
        # While it goes: a small file can hold hours of silence.
        self._seconds += len(samples) / rate
        if self._seconds > self._limits.max_audio_seconds + 1e-6:  # what many small pieces are off in floating point
            raise MediaError(
                f"the clip is longer than {self._limits.max_audio_seconds:g} seconds; send a shorter one, or cut it "
                "into several"
            )
        if self._seconds > self._reserved_s:
            self._reserved_s += RESERVE_S
            self._reserve(int(4 * RESERVE_S * self._rate))
        if not np.isfinite(samples).all():
            raise MediaError("the clip has samples that are not numbers; send a sound file")
        if len(samples) and np.abs(samples).max() > LOUDEST:
            raise MediaError("the clip has samples far beyond full scale; scale them to numbers from -1 to 1")

    def _take(self, samples: np.ndarray, rate: int) -> None:
        if rate != self._from:
            self._end()
            self._from = rate
        if rate == self._rate:
            self._made.append(samples)
            return
        self._filter = self._filter or av.AudioResampler(format="flt", layout="mono", rate=self._rate)
        for start in range(0, len(samples), PIECE):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + PIECE], format="flt", layout="mono")
            frame.sample_rate = rate
            self._keep(self._filter.resample(frame))

    def _end(self) -> None:
        """What the filter still holds."""
        if self._filter is not None:
            self._keep(self._filter.resample(None))
            self._filter = None

    def _keep(self, frames: list[Any]) -> None:
        self._made += [frame.to_ndarray().reshape(-1) for frame in frames]


def _pieces(samples: Any, rate: Any) -> Iterator[Piece]:
    """Samples that were decoded already."""
    array = np.asarray(samples)
    if array.dtype.kind != "f":
        raise MediaError(
            f"the samples of a clip must be floating-point numbers from -1 to 1, not {array.dtype}: divide those of 16 "
            "bits by 32768"
        )
    if array.ndim != 1:
        raise MediaError(f"a clip must have one channel, an array of one axis, not {array.ndim}")
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not float(rate).is_integer():
        raise MediaError(f"a clip's rate must be a whole number of samples per second, not {rate!r}")
    with np.errstate(over="ignore"):  # what overflows is refused behind this
        yield array.astype(np.float32, copy=False), int(float(rate))


def _links(data: bytes) -> Iterator[bytes]:
    """The links of a chained Ogg file, each a file of its own: FFmpeg reads on only where they are alike."""
    if not data.startswith(b"OggS"):
        yield data
        return
    start = at = 0
    begun = True
    while (at := data.find(b"OggS", at)) >= 0 and at + 27 <= len(data):
        begins = bool(data[at + 5] & 2)  # the first page of a stream; those of one link come before all others
        if begins and not begun:
            yield data[start:at]
            start = at
        begun = begins
        segments = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + len(segments) + sum(segments)
    yield data[start:]


def _decode(data: bytes, deadline: float) -> Iterator[Piece]:
    check_time(deadline, CLIP)
    lost = packets = 0
    with opened(data, CLIP, FORMATS) as container:
        if not container.streams.audio:
            raise MediaError(f"the file has no sound in it; send {FORMATS}")
        for packet in container.demux(container.streams.audio[0]):
            check_time(deadline, CLIP)
            frames = decoded(packet)
            packets += packet.size > 0
            lost += frames is None
            for frame in frames or ():
                yield _mixed(frame), frame.sample_rate
    check_lost(lost, packets, CLIP, FORMATS)


def _mixed(frame: Any) -> np.ndarray:
    """The mean of a frame's channels, float32 ``[samples]``.

    Not FFmpeg's own mix to one channel, which leaves channels out and does not keep the level. To mix before resampling
    makes the same samples as to mix behind it, because both are linear.
    """
    name, channels = frame.format.name, len(frame.layout.channels)
    array = frame.to_ndarray()
    samples = array if frame.format.is_planar else array.reshape(-1, channels).T
    kind = name.removesuffix("p")
    middle = FULL_SCALE["u8"] if kind == "u8" else 0.0
    with np.errstate(over="ignore"):
        return ((samples.mean(0, dtype=np.float64) - middle) / FULL_SCALE[kind]).astype(np.float32)
