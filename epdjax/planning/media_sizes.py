"""What media come to in a model: how many encode units, of what size, and how many MM tokens. Nothing is decoded."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from transformers import GotOcr2ImageProcessorPil

from epdjax.models.families.internvl_chat.model import InternVLChatConfig
from epdjax.models.families.minicpmv.model import MiniCPMVConfig
from epdjax.models.families.minicpmv.slicing import cut
from epdjax.models.families.ultravox.model import UltravoxConfig
from epdjax.models.model_config import ModelConfig

KINDS = ("image", "video", "audio")
FRAMES_PER_SECOND = 100  # log-mel


@dataclasses.dataclass(frozen=True)
class Media:
    """A picture, a video or a clip, as sizes.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        width, height: pixels of a picture or a frame.
        frames: of a video that are looked at.
        seconds: of a clip.

    Raises:
        ValueError: an unknown kind, or sizes that are not positive.
    """

    kind: str = "image"
    width: int = 4032
    height: int = 3024
    frames: int = 1
    seconds: float = 0.0

    @property
    def pixels(self) -> tuple[int, ...]:
        """Of each of its pictures or frames; none of a clip."""
        return () if self.kind == "audio" else (self.width * self.height,) * self.frames

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"media are of kind {', '.join(KINDS)}, not {self.kind!r}")
        if self.kind == "audio":
            if not self.seconds > 0:
                raise ValueError(f"a clip lasts more than 0 seconds, not {self.seconds!r}")
        elif min(self.width, self.height, self.frames) < 1:
            raise ValueError(f"sizes are at least 1, not {self.width} x {self.height} pixels, {self.frames} frames")

    @property
    def megapixels(self) -> float:
        """Pixels to decode, in millions."""
        return 0.0 if self.kind == "audio" else self.width * self.height * self.frames / 1e6


@dataclasses.dataclass(frozen=True)
class UnitShape:
    """An encode unit: its size in the family's own measure (see `EncodeUnit.size`), and its MM tokens."""

    size: int
    tokens: int


@functools.lru_cache(maxsize=4096)
def unit_shapes(model: ModelConfig, media: Media) -> tuple[UnitShape, ...]:
    """The encode units of a media item.

    Raises:
        ValueError: the model takes no such media, or its family is none of those whose units are known without a
            checkpoint.
    """
    if media.kind not in model.modalities:
        raise ValueError(f"the model takes {', '.join(model.modalities)}, no {media.kind}")
    for config, shapes in _FAMILIES.items():
        if isinstance(model, config):
            return shapes(model, media)
    known = ", ".join(sorted(config.__name__.removesuffix("Config") for config in _FAMILIES))
    raise ValueError(
        f"units of {type(model).__name__.removesuffix('Config')} are not known from sizes alone ({known} are): say how "
        "many units a media item has, and the tokens of each"
    )


def _internvl(model: InternVLChatConfig, media: Media) -> tuple[UnitShape, ...]:
    """As `InternVLChatProcessor`: tiles of a picture and its thumbnail; one for each frame."""
    unit = UnitShape(1, model.tokens_per_unit)
    if media.kind == "video":
        return (unit,) * media.frames
    count = _tiler(model).get_number_of_image_patches(media.height, media.width, {"crop_to_patches": True})
    return (unit,) * (count - (count > 1 and not model.tiling.thumbnail))


@functools.lru_cache(maxsize=16)
def _tiler(model: InternVLChatConfig) -> GotOcr2ImageProcessorPil:
    height, width, _ = model.vision.unit_shape
    return GotOcr2ImageProcessorPil(
        size={"height": height, "width": width}, min_patches=model.tiling.least, max_patches=model.tiling.most
    )


def _minicpmv(model: MiniCPMVConfig, media: Media) -> tuple[UnitShape, ...]:
    """As `MiniCPMVProcessor`: the whole picture and its slices; of a frame at most two slices."""
    most = model.slicing.most if media.kind == "image" else min(2, model.slicing.most)
    patch = model.vision.patch_size
    made = cut(media.width, media.height, model.slicing.resolution, patch, most)
    units = tuple(UnitShape((w // patch) * (h // patch), model.queries) for w, h in made.sizes)
    return units * media.frames


def _ultravox(model: UltravoxConfig, media: Media) -> tuple[UnitShape, ...]:
    """As `UltravoxProcessor`: the windows of a clip."""
    frames, window = max(2, round(media.seconds * FRAMES_PER_SECOND)), model.audio.window
    parts = [min(window, frames - start) for start in range(0, frames, window)]
    return tuple(UnitShape(part, -(-part // (2 * model.stack))) for part in parts)


_FAMILIES: dict[type[ModelConfig], Callable[[Any, Media], tuple[UnitShape, ...]]] = {
    InternVLChatConfig: _internvl,
    MiniCPMVConfig: _minicpmv,
    UltravoxConfig: _ultravox,
}
