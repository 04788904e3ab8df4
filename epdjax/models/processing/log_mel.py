"""Sound to log-mel frames, as Whisper's feature extractor computes them with numpy.

Reference: HF ``WhisperFeatureExtractor``. Its own call is not used because it takes torch's arithmetic where torch is
installed, and because it always computes a whole window.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from epdjax.models.media import LOUDEST, Audio
from epdjax.models.reading import read_json

HIGHEST_HZ = 8000.0
RANGE = 8.0  # what is this many powers of ten below the loudest value is raised to that


@dataclasses.dataclass(frozen=True, eq=False)
class LogMel:
    """How sound becomes log-mel frames.

    Attributes:
        rate: samples per second.
        hop: samples from one frame to the next.
        span: samples that a frame looks at, half of them before its middle.
        filters: float64 ``[span / 2 + 1, bins]``.
    """

    rate: int
    hop: int
    span: int
    filters: np.ndarray

    @classmethod
    def from_folder(cls, folder: Path, bins: int) -> "LogMel":
        """Read the feature extractor's settings; Whisper's own where the folder has none.

        Args:
            folder: of a checkpoint.
            bins: values of a frame that the encoder takes.

        Raises:
            ValueError: settings that cannot be honoured, named.
        """
        settings = feature_settings(folder)
        kind = settings.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise ValueError(f"feature_extractor_type is {kind!r}; supported: WhisperFeatureExtractor")
        if (size := settings.get("feature_size", bins)) != bins:
            raise ValueError(f"feature_size is {size}, but audio_config.num_mel_bins is {bins}: both must be the same")
        for field in ("dither", "do_normalize"):
            if settings.get(field):
                raise ValueError(f"the feature extractor's {field} is {settings[field]}, which is not supported")
        rate, span = settings.get("sampling_rate", 16000), settings.get("n_fft", 400)
        filters = mel_filter_bank(
            num_frequency_bins=1 + span // 2,
            num_mel_filters=bins,
            min_frequency=0.0,
            max_frequency=HIGHEST_HZ,
            sampling_rate=rate,
            norm="slaney",
            mel_scale="slaney",
        )
        return cls(rate, settings.get("hop_length", 160), span, filters)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """float32 ``[n]`` to float32 ``[n // hop, bins]``; the ends are mirrored, so `n` must be beyond half a span."""
        mel_bf = spectrogram(
            samples,
            window_function(self.span, "hann"),
            frame_length=self.span,
            hop_length=self.hop,
            power=2.0,
            mel_filters=self.filters,
            log_mel="log10",
        )[:, : len(samples) // self.hop]
        mel_bf = np.maximum(mel_bf, mel_bf.max() - RANGE)
        return np.ascontiguousarray(((mel_bf + 4.0) / 4.0).T, np.float32)

    def checked(self, audio: Audio, least: int) -> np.ndarray:
        """The samples of a clip, float32 ``[n]``.

        Raises:
            ValueError: not one channel of numbers at `rate`, fewer than `least` samples, or so large ones that features
                would overflow.
        """
        with np.errstate(over="ignore"):  # what overflows is refused below
            samples = np.asarray(audio.samples, np.float32)
        if audio.rate != self.rate:
            raise ValueError(f"the clip has {audio.rate} samples per second; this model takes {self.rate}: resample it")
        if samples.ndim != 1:
            raise ValueError(f"a clip must have one channel, an array of one axis, not {samples.ndim}")
        if len(samples) < least:
            raise ValueError(
                f"a clip of {len(samples)} samples is too short: this model needs at least {least} "
                f"({1000 * least / self.rate:.0f} ms)"
            )
        if not np.isfinite(samples).all():
            raise ValueError("the clip has samples that are not numbers")
        if np.abs(samples).max() > LOUDEST:
            raise ValueError("the clip has samples far beyond full scale; scale them to numbers from -1 to 1")
        return samples


def feature_settings(folder: Path) -> Mapping[str, Any]:
    """Settings of the feature extractor, from where transformers 5 or 4 writes them; empty if neither is there."""
    nested = folder / "processor_config.json"
    if nested.is_file() and "feature_extractor" in (settings := read_json(nested)):
        return settings["feature_extractor"]
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def padded(samples: np.ndarray, length: int) -> np.ndarray:
    """`samples` with silence behind, `length` in all."""
    return np.pad(samples, (0, length - len(samples)))
