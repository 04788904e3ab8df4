"""Gemma 3's pictures: one of a fixed size for each, and crops of long ones where pan and scan is on.

References: HF ``Gemma3Processor``, ``Gemma3ImageProcessorPil``; ``create_masks_for_vision_model`` for what tokens see.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Gemma3ImageProcessorPil

from epdjax.models.families.gemma3.model import Gemma3Config
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Prompt
from epdjax.models.processing.base import Processor
from epdjax.models.processing.files import special_token
from epdjax.models.processing.pictures import like_torchvision, load_image_processor, media_token, uint8_pictures

# What HF's Gemma3Processor takes where preprocessor_config.json says null. Pan and scan itself is off there unless a
# caller asks for it; a checkpoint that says true does.
_PAN_AND_SCAN = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


class Gemma3Processor(Processor):
    """Tokenizer, chat template and picture processing of a Gemma 3 checkpoint."""

    config: Gemma3Config

    def __init__(self, folder: str | Path, config: Gemma3Config):
        """See `Processor`."""
        super().__init__(folder, config)
        classes: dict[str, type] = {"Gemma3ImageProcessor": like_torchvision(Gemma3ImageProcessorPil)}
        self.image_processor = load_image_processor(self.folder, classes, "Gemma3ImageProcessor")
        self.start = special_token(self.tokenizer, "boi_token", "<start_of_image>")
        self.end = special_token(self.tokenizer, "eoi_token", "<end_of_image>")
        self.mm_token = media_token(self.tokenizer, "image_token", "<image_soft_token>", config.image_token_id)
        self.mm_token_id = config.image_token_id
        self.placeholders = {"image": self.start}
        given = {name: getattr(self.image_processor, name, None) for name in _PAN_AND_SCAN}
        self.pan_and_scan = {
            "do_pan_and_scan": bool(self.image_processor.do_pan_and_scan),
            **{name: default if given[name] is None else given[name] for name, default in _PAN_AND_SCAN.items()},
        }
        self._pictures(Image.new("RGB", (64, 48)))  # a size that does not fit shows now, not in the first request

    def _pictures(self, image: Image.Image) -> np.ndarray:
        return uint8_pictures(self.image_processor, image, self.config.vision.unit_shape, **self.pan_and_scan)

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """The whole picture, then its crops; ValueError for a picture without pixels."""
        tokens = self.config.tokens_per_image
        units = tuple(EncodeUnit({"pixels": pixels}, 1, tokens) for pixels in self._pictures(image))
        return MediaItem("image", units, tokens * len(units))

    def expand(self, item: MediaItem, index: int) -> str:
        """The picture's MM tokens between its brackets; those of its crops after a sentence about them."""
        picture = f"\n\n{self.start}{self.mm_token * self.config.tokens_per_image}{self.end}\n\n"
        crops = len(item.units) - 1
        if not crops:
            return picture
        return f"Here is the original image {picture} and here are some crops to help you see better " + " ".join(
            [picture] * crops
        )

    def layout(self, prompt: Prompt) -> Prompt:
        """Tokens of one picture (or crop) see each other: each sees up to the last of them."""
        if not len(prompt.mm_positions):
            return prompt
        sees = np.arange(len(prompt.token_ids), dtype=np.int32)
        ends = np.flatnonzero(np.diff(prompt.mm_positions, append=-1) != 1)  # brackets keep pictures apart
        last = np.repeat(prompt.mm_positions[ends], np.diff(ends, prepend=-1))
        sees[prompt.mm_positions] = last
        return dataclasses.replace(prompt, sees=sees)
