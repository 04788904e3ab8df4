"""Pictures, videos and prompts of MiniCPM-V 2.6.

Reference: the processors that OpenBMB publishes with the checkpoint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.families.internvl.processor import MediaShape
from epdjax.models.families.minicpmv.model import MiniCPMVConfig
from epdjax.models.families.minicpmv.slicing import Cut, Size, cut, table_rows
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Video
from epdjax.models.processing.base import Processor
from epdjax.models.processing.files import special_token
from epdjax.models.processing.pictures import resized

FRAMES = 64  # of a video, at most
FRAME_SLICES = 2  # of a video frame, and of pictures next to a video, at most
STOPS = ("<|im_end|>", "<|endoftext|>")
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")

# Qwen2's.
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


class MiniCPMVProcessor(Processor):
    """Tokenizer, chat template and picture slicing of a MiniCPM-V 2.6 checkpoint."""

    config: MiniCPMVConfig
    fallback_template = TEMPLATE

    def __init__(self, folder: str | Path, config: MiniCPMVConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.mm_token = "<unk>"
        for mark in (self.mm_token, *MARKS):
            special_token(self.tokenizer, "", mark)
        self.mm_token_id = int(self.tokenizer.convert_tokens_to_ids(self.mm_token))
        self.placeholders = {"image": "(<image>./</image>)", "video": "(<video>./</video>)"}
        added = self.tokenizer.get_added_vocab()
        self.eos_token_ids |= {added[stop] for stop in STOPS if stop in added}

    # ---- pictures -------------------------------------------------------------------------------------------------

    def media_shape(self, width: int, height: int, most: int | None = None) -> MediaShape:
        """Encode units and MM tokens of a picture of at most `most` slices (default: the checkpoint's setting).

        Raises:
            ValueError: see `prepare_image`.
        """
        units = len(self._cut(width, height, self.config.slicing.most if most is None else most).sizes)
        return MediaShape(units, (self.config.queries,) * units)

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Resize a picture as a whole and, if it is large, slice it. Transparency is composited on white.

        Next to a video, pictures are treated like its frames.

        Raises:
            ValueError: a picture without pixels, or thousands of times as long as wide.
        """
        if context is not None and context.videos:
            return self._item("image", [image], self._frame_slices, False)
        return self._item("image", [image], self.config.slicing.most, self.config.slicing.numbered)

    def prepare_video(self, video: Video, context: MediaContext | None = None) -> MediaItem:
        """Every frame as a picture of at most `FRAME_SLICES` slices, without numbers.

        Raises:
            ValueError: no frames, or frames as `prepare_image` refuses.
        """
        if not len(video.frames):
            raise ValueError("a video without frames has no content")
        return self._item("video", [Image.fromarray(frame) for frame in video.frames], self._frame_slices, False)

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """One frame of every second, and of those `FRAMES` at most, evenly spread."""
        each_second = np.arange(0, frames, max(1, round(fps)))
        if len(each_second) <= FRAMES:
            return each_second
        gap = len(each_second) / FRAMES
        return each_second[(np.arange(FRAMES) * gap + gap / 2).astype(int)]

    @property
    def _frame_slices(self) -> int:
        return min(FRAME_SLICES, self.config.slicing.most)

    def _cut(self, width: int, height: int, most: int) -> Cut:
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width} x {height} pixels has no content")
        c = self.config
        made = cut(width, height, c.slicing.resolution, c.vision.patch_size, most)
        if max(w * h for w, h in made.sizes) > c.most_patches * c.vision.patch_size**2:
            raise ValueError(f"a picture of {width} x {height} pixels is too long and narrow for this model: crop it")
        return made

    def _item(self, kind: str, pictures: Sequence[Image.Image], most: int, numbered: bool) -> MediaItem:
        cuts = [self._cut(*picture.size, most) for picture in pictures]
        units = [unit for picture, c in zip(pictures, cuts, strict=True) for unit in self._units(_rgb(picture), c)]
        meta = {"grids": [c.grid for c in cuts], "numbered": numbered}
        return MediaItem(kind, tuple(units), len(units) * self.config.queries, meta=meta)

    def _units(self, picture: Image.Image, made: Cut) -> list[EncodeUnit]:
        units = [self._unit(_resized(picture, made.whole))]
        if made.slices is not None:
            pixels_hwc, (width, height) = _resized(picture, made.slices), made.sizes[1]
            units += [
                self._unit(pixels_hwc[top : top + height, left : left + width])
                for top in range(0, made.slices[1], height)
                for left in range(0, made.slices[0], width)
            ]
        return units

    def _unit(self, pixels_hwc: np.ndarray) -> EncodeUnit:
        c, p = self.config, self.config.vision.patch_size
        height, width, channels = pixels_hwc.shape
        rows, columns = height // p, width // p
        patches = pixels_hwc.reshape(rows, p, columns, p, channels).swapaxes(1, 2).reshape(rows * columns, -1)
        table = table_rows(rows, c.vision.grid)[:, None] * c.vision.grid + table_rows(columns, c.vision.grid)
        inputs = {
            "patches": np.ascontiguousarray(patches),
            "positions": table.ravel().astype(np.int32),
            "cells": np.indices((rows, columns), np.int32).reshape(2, -1).T.copy(),
            "valid": np.ones(rows * columns, np.bool_),
        }
        return EncodeUnit(inputs, rows * columns, c.queries)

    # ---- prompts --------------------------------------------------------------------------------------------------

    def join_parts(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """Content parts as one string: a line each."""
        return "\n".join(part["text"] if part["type"] == "text" else self.placeholders[part["type"]] for part in parts)

    def expand(self, item: MediaItem, index: int) -> str:
        """The whole picture between its marks, behind it the slices row by row; frames of a video line by line."""
        number = f"<image_id>{index}</image_id>" if item.meta["numbered"] else ""
        return "\n".join(number + self._picture(grid) for grid in item.meta["grids"])

    def _picture(self, grid: Size | None) -> str:
        tokens = self.mm_token * self.config.queries
        columns, rows = grid or (0, 0)
        return f"<image>{tokens}</image>" + "\n".join([f"<slice>{tokens}</slice>" * columns] * rows)


def _resized(picture: Image.Image, size: Size) -> np.ndarray:
    return resized(np.asarray(picture), size[1], size[0], Image.Resampling.BICUBIC)


def _rgb(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
