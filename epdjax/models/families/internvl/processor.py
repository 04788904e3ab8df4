"""InternVL's pictures and videos: tiles of one size by aspect ratio, and a thumbnail where there is more than one.

References: HF ``InternVLProcessor``, ``GotOcr2ImageProcessor``, ``InternVLVideoProcessor``.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import GotOcr2ImageProcessorPil

from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Video
from epdjax.models.processing.base import Processor
from epdjax.models.processing.files import special_token
from epdjax.models.processing.pictures import like_torchvision

FRAMES = 8  # of a video that are looked at


@dataclasses.dataclass(frozen=True)
class MediaShape:
    """How many encode units a media item makes, and how many MM tokens each of them makes."""

    units: int
    tokens_per_unit: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """MM tokens of the whole item."""
        return sum(self.tokens_per_unit)


class TileProcessor(Processor):
    """What both layouts of InternVL do with media; a subclass says how pictures are tiled (`image_processor`).

    Attributes:
        image_processor: makes the tiles.
        tiled: whether pictures are cut at all.
        thumbnail: whether a picture of several tiles gets one more of the whole picture.
    """

    config: InternVLConfig
    image_processor: GotOcr2ImageProcessorPil
    tiled: bool = True
    thumbnail: bool = True

    def __init__(self, folder: str | Path, config: InternVLConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.start, self.mm_token, self.end = (
            special_token(self.tokenizer, name, default)
            for name, default in (
                ("start_image_token", "<img>"),
                ("context_image_token", "<IMG_CONTEXT>"),
                ("end_image_token", "</img>"),
            )
        )
        self.mm_token_id = int(self.tokenizer.convert_tokens_to_ids(self.mm_token))

    def media_shape(self, width: int, height: int) -> MediaShape:
        """Encode units and MM tokens of a picture: prompts, tiles and block allocation all follow this one function."""
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width} x {height} pixels has no content")
        units = self.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": self.tiled})
        if units > 1 and not self.thumbnail:
            units -= 1
        return MediaShape(units, (self.config.tokens_per_unit,) * units)

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Tile a picture (and add its thumbnail where it has several tiles).

        Transparency is composited on white, as HF does; every other mode becomes 8-bit RGB as PIL converts it.

        Raises:
            ValueError: a picture without pixels.
        """
        shape = self.media_shape(*image.size)
        tiles = self._tiles(image, self.tiled)[: shape.units]
        if tiles.dtype != np.uint8 or tiles.shape != (shape.units, *self.config.vision.unit_shape):
            raise ValueError(
                f"a picture of {image.size} pixels became {tiles.dtype} {tiles.shape}, expected {shape.units} tiles of "
                f"{self.config.vision.unit_shape}"
            )
        return self._item("image", tiles)

    def prepare_video(self, video: Video, context: MediaContext | None = None) -> MediaItem:
        """One tile for each frame, without thumbnails."""
        tiles = [self._tiles(Image.fromarray(frame), False) for frame in video.frames]
        if not tiles:
            raise ValueError("a video without frames has no content")
        return self._item("video", np.concatenate(tiles))

    def expand(self, item: MediaItem, index: int) -> str:
        """MM tokens between brackets; those of a video frame by frame, numbered from one."""
        if item.kind == "image":
            return f"{self.start}{self.mm_token * item.tokens}{self.end}"
        frames = (f"{self.start}{self.mm_token * unit.tokens}{self.end}" for unit in item.units)
        return "\n".join(f"Frame{i}: {frame}" for i, frame in enumerate(frames, start=1))

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """The middle frames of `FRAMES` equal parts of a video; all frames of one that has no more than that."""
        if frames <= FRAMES:
            return np.arange(frames)
        return ((np.arange(FRAMES) + 0.5) * (frames / FRAMES)).astype(int)

    def _tiles(self, image: Image.Image, tiled: bool) -> np.ndarray:
        # The processor is given a PIL image, never an array: it guesses the layout of arrays from their shape, wrongly
        # for pictures 1 or 3 pixels high.
        options: dict[str, Any] = {
            "do_resize": True,
            "do_rescale": False,
            "do_normalize": False,
            "crop_to_patches": tiled,
        }
        out = self.image_processor(image, do_convert_rgb=True, **options)
        tiles = np.stack([np.asarray(tile) for tile in out["pixel_values"]])
        return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1))

    def _item(self, kind: str, tiles: np.ndarray) -> MediaItem:
        tokens = self.config.tokens_per_unit
        return MediaItem(kind, tuple(EncodeUnit({"pixels": t}, 1, tokens) for t in tiles), tokens * len(tiles))


class InternVLProcessor(TileProcessor):
    """Tokenizer, chat template and tiling of an InternVL checkpoint as transformers writes it.

    HF's InternVLProcessor tiles pictures whatever the image processor's own default is (checkpoints say false there).
    """

    def __init__(self, folder: str | Path, config: InternVLConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.image_processor = _load_image_processor(self.folder, config)
        self.placeholders = {
            "image": self.mm_token,
            "video": getattr(self.tokenizer, "video_token", None) or "<video>",
        }
        if self.mm_token_id != config.image_token_id:
            raise ValueError(
                f"config.json says image_token_id {config.image_token_id}, but the tokenizer gives "
                f"{self.mm_token!r} the id {self.mm_token_id}"
            )


def _load_image_processor(folder: Path, config: InternVLConfig) -> GotOcr2ImageProcessorPil:
    try:
        processor = like_torchvision(GotOcr2ImageProcessorPil).from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the image processor from {folder}: {error}") from error
    size = (processor.size["height"], processor.size["width"])
    if size != config.vision.unit_shape[:2]:
        raise ValueError(
            f"the image processor makes tiles of {size}, the vision tower takes {config.vision.unit_shape[:2]}"
        )
    if not (processor.do_rescale and processor.do_normalize) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError("the image processor must rescale by 1/255 and normalise (do_rescale, do_normalize)")
    return processor
