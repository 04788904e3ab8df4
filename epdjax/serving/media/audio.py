"""Sound: decoded behind bounds, mixed to one channel, at the rate that the model's feature extractor wants."""

import av
import numpy as np

from epdjax.models.media import Audio
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.containers import opened
from epdjax.serving.media.sources import CLIP, Reserve, no_reserve, read

FORMATS = "WAV, MP3, FLAC, OGG or M4A"


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
        source: see `sources.read`; or an `Audio`, which must have that rate already.
        limits: what is allowed.
        rate: samples per second.
        deadline: `time.monotonic()` at which to give up a download.

    Returns:
        One channel (the mean of those there are), resampled by FFmpeg where the rate differs.

    Raises:
        MediaError: says what to change.
    """
    if isinstance(source, Audio):
        if source.rate != rate:
            raise MediaError(f"the clip has {source.rate} samples per second; this model takes {rate}")
        samples = np.asarray(source.samples, np.float32)
        if samples.ndim != 1:
            raise MediaError(f"a clip must have one channel, an array of one axis, not {samples.ndim}")
        _check_length(len(samples), rate, limits)
    else:
        reserve(4 * int(limits.max_audio_seconds * rate))
        samples = _decode(read(source, CLIP, limits, deadline), limits, rate)
    if not len(samples):
        raise MediaError("the clip has no sound; send one of at least a few hundredths of a second")
    if not np.isfinite(samples).all():
        raise MediaError("the clip has samples that are not numbers; send a sound file")
    return Audio(samples, rate)


def _decode(data: bytes, limits: ServingLimits, rate: int) -> np.ndarray:
    pieces: list[np.ndarray] = []
    total = 0
    with opened(data, CLIP, FORMATS) as container:
        if not container.streams.audio:
            raise MediaError(f"the file has no sound in it; send {FORMATS}")
        stream = container.streams.audio[0]
        mixer = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(stream):
            for mixed in mixer.resample(frame):
                pieces.append(mixed.to_ndarray().reshape(-1))
                total += len(pieces[-1])
            _check_length(total, rate, limits)  # while it goes: a small file can hold hours of silence
        pieces += [mixed.to_ndarray().reshape(-1) for mixed in mixer.resample(None)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _check_length(samples: int, rate: int, limits: ServingLimits) -> None:
    if samples > limits.max_audio_seconds * rate:
        raise MediaError(
            f"the clip is longer than {limits.max_audio_seconds:g} seconds; send a shorter one, or cut it into several"
        )
