"""Qwen-VL's pictures and videos at their own resolution, and the M-RoPE positions they take in a prompt.

References: HF ``Qwen2VLProcessor``, ``Qwen2_5_VLProcessor``, ``Qwen3VLProcessor``; ``get_rope_index`` of their models.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.image_transforms import convert_to_rgb
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from epdjax.models.families.qwen_vl.model import MAX_ASPECT, QwenVLConfig
from epdjax.models.families.qwen_vl.patches import encode_unit
from epdjax.models.families.qwen_vl.video import ClipSettings, VideoSettings, group_seconds, sampled_fps
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Prompt, Video
from epdjax.models.processing.base import Processor
from epdjax.models.processing.pictures import resized
from epdjax.models.reading import read_json

PIXEL_LIMITS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))  # two names for each
Grid = tuple[int, int, int]  # MM tokens: frame groups, rows, columns


class Qwen2VLProcessor(Processor):
    """Tokenizer, chat template, pictures and videos of a Qwen2-VL checkpoint.

    Every MM token is `mm_token` until `layout`, which tells those of videos from those of pictures.
    """

    config: QwenVLConfig
    settings_class: type[VideoSettings] = VideoSettings
    mm_token = "<|image_pad|>"
    video_token = "<|video_pad|>"
    placeholders: Mapping[str, str] = {"image": mm_token, "video": video_token}

    def __init__(self, folder: str | Path, config: QwenVLConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        self.mm_token_id = self._token_id("image_token_id", self.mm_token, config.image_token_id)
        self.video_token_id = self._token_id("video_token_id", self.video_token, config.video_token_id)
        self.image_processor = _load_image_processor(self.folder, config)
        self.video_settings = self.settings_class.from_hf(_video_settings(self.folder, config))

    def _token_id(self, name: str, token: str, expected: int) -> int:
        token_id = self.tokenizer.get_added_vocab().get(token)
        if token_id != expected:
            raise ValueError(f"config.json says {name} {expected}, but the tokenizer gives {token!r} the id {token_id}")
        return expected

    def picture_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels that a picture is resized to; it makes one MM token per merge square.

        Raises:
            ValueError: a picture without pixels, or too long for its width.
        """
        _check_sides("a picture", width, height)
        vision, size = self.config.vision, self.image_processor.size
        side = vision.patch_size * vision.merge_size
        return smart_resize(height, width, side, size["shortest_edge"], size["longest_edge"])

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """One encode unit; transparency is composited on white, as HF does."""
        size = self.picture_size(*image.size)
        rgb_hwc = np.asarray(convert_to_rgb(image, return_numpy=True))
        pixels_hwc = resized(rgb_hwc, *size, self.image_processor.resample)
        unit = self._unit(np.broadcast_to(pixels_hwc, (self.config.vision.temporal_patch_size, *pixels_hwc.shape)))
        return MediaItem("image", (unit,), unit.tokens, meta={"grids": (self._grid(1, size),)})

    def prepare_video(self, video: Video, context: MediaContext | None = None) -> MediaItem:
        """An encode unit per group of frames that share patches; the last frame is repeated to fill its group."""
        vision, frames = self.config.vision, video.frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 [frames, height, width, 3], not {frames.dtype} {frames.shape}")
        count, height, width, _ = frames.shape
        if not count:
            raise ValueError("a video without frames has no content")
        _check_sides("a frame", width, height)
        size, group = self.video_settings.frame_size(count, height, width, vision), vision.temporal_patch_size
        small = [resized(frame, *size, self.video_settings.resample) for frame in frames]
        small += small[-1:] * (-len(small) % group)
        units = tuple(self._unit(np.stack(small[i : i + group])) for i in range(0, len(small), group))
        meta = self._video_meta(video, self._grid(len(units), size))
        return MediaItem("video", units, sum(unit.tokens for unit in units), meta=meta)

    def _unit(self, frames_fhwc: np.ndarray) -> EncodeUnit:
        unit, limit = encode_unit(frames_fhwc, self.config.vision), self.config.unit_limit
        if limit is not None and unit.tokens > limit:
            raise ValueError(
                f"frames of {frames_fhwc.shape[2]} x {frames_fhwc.shape[1]} pixels make {unit.tokens} tokens, more "
                f"than the {limit} of the largest picture: lower the video processor's size.longest_edge"
            )
        return unit

    def _grid(self, groups: int, size: tuple[int, int]) -> Grid:
        side = self.config.vision.patch_size * self.config.vision.merge_size
        return groups, size[0] // side, size[1] // side

    def _video_meta(self, video: Video, grid: Grid) -> dict[str, Any]:
        """What `expand` and `layout` need: the grids of its runs of MM tokens, positions from one group to the next."""
        return {"grids": (grid,)}

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """Which frames of a video to decode, as the checkpoint's video processor says."""
        return self.video_settings.sample(frames, fps, self.config.vision.temporal_patch_size)

    def layout(self, prompt: Prompt) -> Prompt:
        """Tell videos from pictures, and give M-RoPE positions.

        Text counts on in all three axes. A grid takes (time, row, column) from the position where it starts, and text
        goes on after it as far from there as its longer side. An answer goes on where the prompt's text ended, as in
        HF's ``generate``, also where a long video has gone beyond that in time.
        """
        token_ids, count = prompt.token_ids.copy(), len(prompt.token_ids)
        rope_t3 = np.empty((count, 3), np.int32)
        done = position = taken = 0
        for item in prompt.media:
            for grid in item.meta["grids"]:
                at, size = int(prompt.mm_positions[taken]), int(np.prod(grid))
                rope_t3[done:at] = position + np.arange(at - done)[:, None]
                position += at - done
                rope_t3[at : at + size] = position + _grid_positions(grid, item.meta.get("interval", 1.0))
                if item.kind == "video":
                    token_ids[at : at + size] = self.video_token_id
                position += max(grid[1:])
                done, taken = at + size, taken + size
        rope_t3[done:] = position + np.arange(count - done)[:, None]
        return dataclasses.replace(prompt, token_ids=token_ids, rope_positions=rope_t3, rope_delta=position - done)


class Qwen2_5VLProcessor(Qwen2VLProcessor):
    """Qwen2.5-VL: positions in time are seconds."""

    def _video_meta(self, video: Video, grid: Grid) -> dict[str, Any]:
        # In float32, as HF: positions are floors, and a wrong last bit would show.
        seconds = np.float32(self.config.vision.temporal_patch_size / sampled_fps(video))
        return {"grids": (grid,), "interval": np.float32(self.config.tokens_per_second) * seconds}


class Qwen3VLProcessor(Qwen2VLProcessor):
    """Qwen3-VL: the prompt says in words when each group of frames is shown, and each is a grid of its own."""

    settings_class = ClipSettings
    start, end = "<|vision_start|>", "<|vision_end|>"

    def _video_meta(self, video: Video, grid: Grid) -> dict[str, Any]:
        groups, rows, columns = grid
        seconds = group_seconds(video, self.config.vision.temporal_patch_size)
        return {"grids": ((1, rows, columns),) * groups, "seconds": seconds}

    def expand(self, item: MediaItem, index: int) -> str:
        """MM tokens; those of a video's groups in brackets, each behind its time."""
        if item.kind == "image":
            return self.mm_token * item.tokens
        tokens = self.mm_token * item.units[0].tokens
        return "".join(f"<{t:.1f} seconds>{self.start}{tokens}{self.end}" for t in item.meta["seconds"])


def _check_sides(what: str, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{what} of {width} x {height} pixels has no content")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{what} of {width} x {height} pixels is more than {MAX_ASPECT} times as long as wide: crop it"
        )


def _grid_positions(grid: Grid, interval: float) -> np.ndarray:
    """(time, row, column) of each MM token of a grid, int32 ``[tokens, 3]``."""
    time = (np.arange(grid[0], dtype=np.float32) * np.float32(interval)).astype(np.int32)
    axes = np.meshgrid(time, np.arange(grid[1]), np.arange(grid[2]), indexing="ij")
    return np.stack(axes, -1).reshape(-1, 3).astype(np.int32)


def _load_image_processor(folder: Path, config: QwenVLConfig) -> Qwen2VLImageProcessorPil:
    try:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the image processor from {folder}: {error}") from error
    _check_settings(processor.to_dict(), config, "image")
    return processor


def _video_settings(folder: Path, config: QwenVLConfig) -> dict[str, Any]:
    """The video processor's settings, from where HF looks for them, in its order."""
    for name, section in (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        path = folder / name
        settings = read_json(path) if path.is_file() else {}
        settings = settings.get(section, {}) if section else settings
        if settings:
            break
    _check_settings(settings, config, "video")
    return settings


def _check_settings(settings: Mapping[str, Any], config: QwenVLConfig, kind: str) -> None:
    vision = config.vision
    wanted = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    for name, value in wanted.items():
        said = settings.get(name)
        said = list(said) if isinstance(said, tuple) else said
        if said is not None and said != value:
            raise ValueError(f"the {kind} processor's {name} is {said}; this model needs {value}")
    size = settings.get("size") or {}
    limits = [settings.get(name) or size.get(edge) for name, edge in PIXEL_LIMITS]
    if size and None in limits:
        given = {name: value for name, value in size.items() if value is not None}
        raise ValueError(
            f"the {kind} processor's size is {given}; it must have shortest_edge and longest_edge, the fewest and the "
            "most pixels of a picture"
        )
    if abs((settings.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"the {kind} processor's rescale_factor is not 1/255")
