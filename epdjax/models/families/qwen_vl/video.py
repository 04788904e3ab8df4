"""Which frames of a video Qwen-VL looks at, and in what size.

References: HF ``Qwen2VLVideoProcessor``, ``Qwen3VLVideoProcessor``. They need torchvision, so sizes are reckoned here.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from epdjax.models.families.qwen_vl.model import pixel_limits
from epdjax.models.families.qwen_vl.vit import QwenVisionConfig
from epdjax.models.media import Video


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """A video processor's settings, and Qwen2-VL's way with them: each frame has its own bounds in pixels.

    Attributes:
        min_pixels, max_pixels: of a resized frame (Qwen3-VL: of all frames together).
        resample: PIL's number of the filter.
        fps: frames to look at per second; num_frames: how many instead, or None.
        min_frames, max_frames: bounds when going by `fps`.
        cap: also share a budget of `max_video_tokens` among the frames (``cap_pixels_per_frame``).
    """

    min_pixels: int
    max_pixels: int
    resample: int
    fps: float
    num_frames: int | None
    min_frames: int
    max_frames: int
    cap: bool
    max_video_tokens: int

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read a video processor's settings.

        Where they name no rate, 2 frames per second are looked at, as by Qwen's own tools; transformers takes them all.
        """
        return cls._read(settings, pixel_limits(settings, (128 * 28 * 28, 768 * 28 * 28)), 128_000)

    @classmethod
    def _read(cls, settings: Mapping[str, Any], limits: tuple[int, int], tokens: int) -> Self:
        return cls(
            *limits,
            resample=settings.get("resample") or 3,
            fps=float(settings.get("fps") or 2.0),
            num_frames=settings.get("num_frames"),
            min_frames=settings.get("min_frames") or 4,
            max_frames=settings.get("max_frames") or 768,
            cap=bool(settings.get("cap_pixels_per_frame")),
            max_video_tokens=settings.get("max_video_tokens") or tokens,
        )

    def sample(self, frames: int, fps: float, group: int) -> np.ndarray:
        """Indices of the frames to look at, ascending, in whole groups of `group` where there are enough."""
        if self.num_frames is not None:
            wanted = min(round(self.num_frames / group) * group, frames)
        else:
            most = min(self.max_frames, frames) // group * group
            wanted = math.floor(min(max(frames / fps * self.fps, self.min_frames), most)) // group * group
        wanted = max(wanted, 1)
        return np.arange(wanted) * frames // wanted

    def frame_size(self, frames: int, height: int, width: int, vision: QwenVisionConfig) -> tuple[int, int]:
        """(height, width) that the frames are resized to."""
        side, most = vision.patch_size * vision.merge_size, self.max_pixels
        if self.cap:
            budget = int(self.max_video_tokens * side * side * 0.9)
            most = max(min(most, budget * vision.temporal_patch_size // frames), int(self.min_pixels * 1.05))
        return smart_resize(height, width, side, self.min_pixels, most)


class ClipSettings(VideoSettings):
    """Qwen3-VL's way: the bounds in pixels are of the whole clip."""

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read a video processor's settings."""
        size = {"size": settings.get("size")}  # this processor knows no min_pixels and max_pixels
        return cls._read(settings, pixel_limits(size, (128 * 32 * 32, 768 * 32 * 32)), 768)

    def sample(self, frames: int, fps: float, group: int) -> np.ndarray:
        """Indices of the frames to look at, the first and the last among them."""
        wanted = self.num_frames
        if wanted is None:
            wanted = min(max(int(frames / fps * self.fps), self.min_frames), self.max_frames, frames)
        return np.linspace(0, frames - 1, min(wanted, frames)).round().astype(int)

    def frame_size(self, frames: int, height: int, width: int, vision: QwenVisionConfig) -> tuple[int, int]:
        """(height, width) that the frames are resized to; ValueError for fewer than fill a patch."""
        side, group = vision.patch_size * vision.merge_size, vision.temporal_patch_size
        if frames < group:
            raise ValueError(f"this model needs videos of at least {group} frames, this one has {frames}")
        most = self.max_pixels
        if self.cap:
            share = min(self.max_video_tokens * side * side, most // frames)
            most = max(share, int(self.min_pixels * 1.05)) * frames
        if height < side or width < side:
            scale = max(side / height, side / width)
            height, width = int(height * scale), int(width * scale)
        rows, columns = round(height / side), round(width / side)
        pixels = round(frames / group) * group * rows * columns * side * side
        if pixels > most:
            shrink = math.sqrt(frames * height * width / most)
            rows, columns = (max(1, math.floor(x / shrink / side)) for x in (height, width))
        elif pixels < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (frames * height * width))
            rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
        return rows * side, columns * side


def sampled_fps(video: Video) -> float:
    """Frames per second that are looked at, as HF reckons: how many of the source's frames, times its rate.

    Where a `Video` does not say how many frames its source had, it is the number that evenly spread frames imply.
    """
    count = len(video.timestamps_s)
    if video.source_frames:
        return count / video.source_frames * video.fps
    if count < 2:
        return video.fps
    last = round((video.timestamps_s[-1] - video.timestamps_s[0]) * video.fps)
    return count / -(-last * count // (count - 1)) * video.fps


def group_seconds(video: Video, group: int) -> list[float]:
    """When each group of `group` frames is shown: midway between its first and last. The last fills a group up."""
    times = [float(t) for t in video.timestamps_s]
    times += times[-1:] * (-len(times) % group)
    return [(times[i] + times[i + group - 1]) / 2 for i in range(0, len(times), group)]
