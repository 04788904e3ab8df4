"""InternVL's pictures: tiles of one size by aspect ratio, and a thumbnail where there is more than one.

Reference: HF ``InternVLProcessor``, ``GotOcr2ImageProcessor``.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import GotOcr2ImageProcessorPil

from epdjax.models.internvl import InternVLConfig
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem
from epdjax.models.processing.base import Processor
from epdjax.models.processing.files import special_token

# HF's InternVLProcessor tiles pictures whatever the image processor's own default is (checkpoints say false there).
_TILED: dict[str, Any] = {"crop_to_patches": True}


@dataclasses.dataclass(frozen=True)
class MediaShape:
    """How many encode units a media item makes, and how many MM tokens each of them makes."""

    units: int
    tokens_per_unit: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """MM tokens of the whole item."""
        return sum(self.tokens_per_unit)


class InternVLProcessor(Processor):
    """Tokenizer, chat template and picture tiling of an InternVL checkpoint."""

    config: InternVLConfig

    def __init__(self, folder: str | Path, config: InternVLConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.image_processor = _load_image_processor(self.folder, config)
        self.start, self.mm_token, self.end = (
            special_token(self.tokenizer, name, default)
            for name, default in (
                ("start_image_token", "<img>"),
                ("context_image_token", "<IMG_CONTEXT>"),
                ("end_image_token", "</img>"),
            )
        )
        self.placeholders = {"image": self.mm_token}
        self.mm_token_id = int(self.tokenizer.convert_tokens_to_ids(self.mm_token))
        if self.mm_token_id != config.image_token_id:
            raise ValueError(
                f"config.json says image_token_id {config.image_token_id}, but the tokenizer gives "
                f"{self.mm_token!r} the id {self.mm_token_id}"
            )

    def media_shape(self, width: int, height: int) -> MediaShape:
        """Encode units and MM tokens of a picture: prompts, tiles and block allocation all follow this one function."""
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width} x {height} pixels has no content")
        units = self.image_processor.get_number_of_image_patches(height, width, dict(_TILED))
        return MediaShape(units, (self.config.tokens_per_unit,) * units)

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Tile a picture (and add its thumbnail where it has several tiles).

        Transparency is composited on white, as HF does; every other mode becomes 8-bit RGB as PIL converts it.

        Raises:
            ValueError: a picture without pixels.
        """
        shape = self.media_shape(*image.size)
        # The processor is given a PIL image, never an array: it guesses the layout of arrays from their shape, wrongly
        # for pictures 1 or 3 pixels high.
        out = self.image_processor(
            image, do_convert_rgb=True, do_resize=True, do_rescale=False, do_normalize=False, **_TILED
        )
        tiles = np.stack([np.asarray(tile) for tile in out["pixel_values"]]).transpose(0, 2, 3, 1)
        if tiles.dtype != np.uint8 or tiles.shape != (shape.units, *self.config.unit_shape):
            raise ValueError(
                f"a picture of {image.size} pixels became {tiles.dtype} {tiles.shape}, expected {shape.units} tiles of "
                f"{self.config.unit_shape}"
            )
        tiles = np.ascontiguousarray(tiles)
        units = tuple(EncodeUnit({"pixels": t}, 1, n) for t, n in zip(tiles, shape.tokens_per_unit, strict=True))
        return MediaItem("image", units, shape.tokens)

    def expand(self, item: MediaItem, index: int) -> str:
        """The picture's MM tokens between its brackets."""
        return f"{self.start}{self.mm_token * item.tokens}{self.end}"


def _load_image_processor(folder: Path, config: InternVLConfig) -> GotOcr2ImageProcessorPil:
    try:
        processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the image processor from {folder}: {error}") from error
    size = (processor.size["height"], processor.size["width"])
    if size != config.unit_shape[:2]:
        raise ValueError(f"the image processor makes tiles of {size}, the vision tower takes {config.unit_shape[:2]}")
    if not (processor.do_rescale and processor.do_normalize) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError("the image processor must rescale by 1/255 and normalise (do_rescale, do_normalize)")
    return processor
