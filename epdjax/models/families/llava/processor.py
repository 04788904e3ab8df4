"""LLaVA's pictures: one of a fixed size for each. Reference: HF ``LlavaProcessor``."""

from pathlib import Path

from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from epdjax.models.families.llava.model import LlavaConfig
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem
from epdjax.models.processing.base import Processor
from epdjax.models.processing.pictures import (
    like_torchvision,
    load_image_processor,
    media_token,
    refuse_enlarged,
    uint8_pictures,
)

_CLASSES: dict[str, type] = {
    "CLIPImageProcessor": like_torchvision(CLIPImageProcessorPil),
    "LlavaImageProcessor": like_torchvision(LlavaImageProcessorPil),
    "SiglipImageProcessor": like_torchvision(SiglipImageProcessorPil),
}


class LlavaProcessor(Processor):
    """Tokenizer, chat template and picture processing of a LLaVA checkpoint."""

    config: LlavaConfig

    def __init__(self, folder: str | Path, config: LlavaConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.image_processor = load_image_processor(self.folder, _CLASSES, "CLIPImageProcessor")
        self.mm_token = media_token(self.tokenizer, "image_token", "<image>", config.image_token_id)
        self.mm_token_id = config.image_token_id
        self.placeholders = {"image": self.mm_token}
        # Pictures of all sizes must come out alike: a wide one shows it now rather than in the first request.
        uint8_pictures(self.image_processor, Image.new("RGB", (64, 48)), config.vision.unit_shape)

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Resize, and crop or pad, as the checkpoint says.

        Raises:
            ValueError: a picture without pixels, or far longer than wide.
        """
        short, long = sorted(image.size)
        if self.image_processor.do_pad:
            refuse_enlarged(image, long, long)
        elif edge := self.image_processor.size.shortest_edge:
            refuse_enlarged(image, edge, edge * long / max(short, 1))
        (pixels,) = uint8_pictures(self.image_processor, image, self.config.vision.unit_shape)
        tokens = self.config.tower_tokens
        return MediaItem("image", (EncodeUnit({"pixels": pixels}, 1, tokens),), tokens)
