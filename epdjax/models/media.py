"""Media on their way to the encoder: what decoding gives, and what an encoder takes.

A media item becomes encode units, the smallest pieces that can be encoded on their own. Units of different sizes are
padded to declared buckets when they are encoded; here every array still has its true size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOUDEST = (
    2.0**31
)  # full scale of 32-bit integers: beyond it samples are refused, before anything made of them overflows


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """Frames picked from a video.

    Attributes:
        frames: uint8 ``[frames, height, width, 3]``.
        timestamps_s: float64 ``[frames]``, when each is shown, in seconds after the first frame of the source.
        fps: frames per second of the source, before any were left out.
        source_frames: how many it had; None: not known.
    """

    frames: np.ndarray
    timestamps_s: np.ndarray
    fps: float
    source_frames: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Audio:
    """A clip of sound.

    Attributes:
        samples: float32 ``[n]``, one channel, from -1 to 1.
        rate: samples per second. Processors take that of the model's feature extractor; requests may have any other,
            and are resampled.
    """

    samples: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True, eq=False)
class EncodeUnit:
    """One encode unit.

    Attributes:
        inputs: arrays of the encoder's inputs, without unit axis and padding; pixels are uint8.
        size: in the family's own measure (patches, mel frames; 1 where all units are alike): picks the bucket.
        tokens: MM tokens it makes.
        picks: int32 ``[tokens]``, the rows of the encoder's output that are those tokens, in the order of the prompt;
            None for the first `tokens` rows.
    """

    inputs: Mapping[str, np.ndarray]
    size: int
    tokens: int
    picks: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Host memory its inputs take."""
        return sum(array.nbytes for array in self.inputs.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Mix:
    """Prompt tokens that are weighted sums of an item's MM tokens (a picture resized after it was encoded).

    Attributes:
        rows: int32 ``[tokens, taps]``, into the MM tokens of the item, unit after unit.
        weights: float32 ``[tokens, taps]``.
    """

    rows: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class MediaItem:
    """A picture, video or audio clip ready to be encoded.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        units: its encode units.
        tokens: positions it takes in the prompt: as many as its units make, unless there is a `mix`.
        mix: how those positions come from the units' tokens; None: one each, in order.
        meta: what the family has to know of it to write its part of the prompt (grid, timestamps).
    """

    kind: str
    units: tuple[EncodeUnit, ...]
    tokens: int
    mix: Mix | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Host memory its units take."""
        return sum(unit.nbytes for unit in self.units)


@dataclasses.dataclass(frozen=True)
class MediaContext:
    """How many media items of each kind a request has: some families cut a lone picture finer."""

    images: int = 0
    videos: int = 0
    audios: int = 0

    @classmethod
    def of(cls, kinds: Sequence[str]) -> "MediaContext":
        """Counts kinds of media."""
        return cls(kinds.count("image"), kinds.count("video"), kinds.count("audio"))


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised prompt and its media.

    Attributes:
        token_ids: int32 ``[tokens]``, placeholders expanded.
        mm_positions: int32 ``[mm_tokens]``, where in `token_ids` MM tokens go: those of the first item first.
        media: in the order of the prompt.
        rope_positions: int32 ``[tokens, 3]`` (time, height, width) for models with M-RoPE; None: counted from 0.
        rope_delta: what is added to the position of an answer's token for its rotary embedding.
        sees: int32 ``[tokens]``, the last position each token attends to; None: itself.
    """

    token_ids: np.ndarray
    mm_positions: np.ndarray
    media: tuple[MediaItem, ...]
    rope_positions: np.ndarray | None = None
    rope_delta: int = 0
    sees: np.ndarray | None = None
