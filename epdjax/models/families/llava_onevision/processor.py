"""LLaVA-OneVision's pictures and videos: a lone picture as tiles of any resolution, others as one tile each.

References: HF ``LlavaOnevisionProcessor``, ``LlavaOnevisionImageProcessorPil``, ``LlavaOnevisionModel`` of
transformers 5.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import SizeDict

from epdjax.models.families.llava_onevision.mix import frames_mix, tiles_mix
from epdjax.models.families.llava_onevision.model import LlavaOnevisionConfig
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Mix, Prompt, Video
from epdjax.models.processing.base import Processor
from epdjax.models.processing.pictures import (
    checked,
    like_torchvision,
    load_image_processor,
    media_token,
    refuse_enlarged,
)
from epdjax.models.reading import read_json

FRAMES = 32  # of a video, where the checkpoint does not say: what the model was trained with at most


class LlavaOnevisionProcessor(Processor):
    """Tokenizer, chat template, tiles and frames of a LLaVA-OneVision checkpoint."""

    config: LlavaOnevisionConfig

    def __init__(self, folder: str | Path, config: LlavaOnevisionConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        classes = {"LlavaOnevisionImageProcessor": like_torchvision(LlavaOnevisionImageProcessorPil)}
        self.image_processor = load_image_processor(self.folder, classes, "LlavaOnevisionImageProcessor")
        self.mm_token = media_token(self.tokenizer, "image_token", "<image>", config.image_token_id)
        self.mm_token_id = config.image_token_id
        video = media_token(self.tokenizer, "video_token", "<video>", config.video_token_id)
        self.placeholders = {"image": self.mm_token, "video": video}
        side = config.vision.image_size
        if (size := dict(self.image_processor.size)) != {"height": side, "width": side}:
            raise ValueError(f"the image processor makes tiles of {size}, the vision tower takes {side} x {side}")
        pinpoints = {tuple(point) for point in self.image_processor.image_grid_pinpoints}
        if pinpoints != set(config.grid_pinpoints):
            raise ValueError("image_grid_pinpoints of the image processor and of config.json differ")
        self.max_frames = _num_frames(self.folder)

    # ---- pictures -------------------------------------------------------------------------------------------------

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Tiles of a request's only picture, after a small copy of the whole; of several pictures, one tile each.

        Raises:
            ValueError: a picture without pixels, or so long that shrinking leaves no token of it.
        """
        if min(image.size) < 1:
            raise ValueError(f"a picture of {image.width} x {image.height} pixels has no content")
        picture = self.image_processor.process_image(image, do_convert_rgb=True)
        if context is not None and context.images > 1:
            refuse_enlarged(image, max(image.size), max(image.size))
            background = tuple(int(x * 255) for x in self.config.image_mean)
            tiles = [self._resize(self.image_processor.pad_to_square(picture, background_color=background))]
            return self._item("image", tiles, None)
        side = self.config.vision.image_size
        pinpoints = list(self.config.grid_pinpoints)
        tiles = self.image_processor.get_image_patches(
            picture, pinpoints, size=(side, side), patch_size=side, resample=self.image_processor.resample
        )
        size = picture.shape[-2:]
        height, width = select_best_resolution(size, pinpoints)
        grid = (height // side, width // side)
        return self._item("image", tiles, tiles_mix(size, grid, self.config.vision.grid, self.config.max_tiles))

    def _resize(self, picture: np.ndarray) -> np.ndarray:
        side = self.config.vision.image_size
        size = SizeDict(height=side, width=side)
        return self.image_processor.resize(picture, size=size, resample=self.image_processor.resample)

    # ---- videos ---------------------------------------------------------------------------------------------------

    def prepare_video(self, video: Video, context: MediaContext | None = None) -> MediaItem:
        """A tile for each frame; its tokens are pooled to a quarter. ValueError for a video without frames."""
        if not video.frames.size:
            raise ValueError(f"a video of shape {video.frames.shape} has no content")
        tiles = [self._resize(frame) for frame in video.frames.transpose(0, 3, 1, 2)]
        return self._item("video", tiles, frames_mix(len(tiles), self.config.vision.grid))

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """Evenly spaced frames, as HF's ``BaseVideoProcessor.sample_frames``."""
        count = min(frames, self.max_frames)
        return (np.arange(count) * (frames / count)).astype(np.int64)

    # ---- both -----------------------------------------------------------------------------------------------------

    def _item(self, kind: str, tiles: list[np.ndarray], mix: Mix | None) -> MediaItem:
        tokens = self.config.unit_tokens(1)
        pixels = checked(tiles, self.config.vision.unit_shape)
        units = tuple(EncodeUnit({"pixels": tile}, 1, tokens) for tile in pixels)
        return MediaItem(kind, units, tokens * len(units) if mix is None else len(mix.rows), mix)

    def layout(self, prompt: Prompt) -> Prompt:
        """A video's positions carry its own token, which `expand` left to this."""
        kinds = [item.kind == "video" for item in prompt.media]
        if not any(kinds):
            return prompt
        token_ids = prompt.token_ids.copy()
        of_video = np.repeat(kinds, [item.tokens for item in prompt.media])
        token_ids[prompt.mm_positions[of_video]] = self.config.video_token_id
        return dataclasses.replace(prompt, token_ids=token_ids)


def _num_frames(folder: Path) -> int:
    """Frames to take of a video, from where transformers 5 or 4 writes the video processor's settings."""
    for name in ("processor_config.json", "video_preprocessor_config.json"):
        if (path := folder / name).is_file():
            settings: dict[str, Any] = read_json(path)
            settings = settings.get("video_processor", {}) if name == "processor_config.json" else settings
            if settings.get("num_frames"):
                return int(settings["num_frames"])
    return FRAMES
