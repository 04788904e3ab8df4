"""Media as Python callers give them: paths and arrays, beside the strings and bytes that come over HTTP."""

import os
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.media import Video
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.sources import VIDEO, check_size

LIST_FPS = 24.0  # of frames without times, as transformers assumes


def named_path(source: object) -> object:
    """A path as the string that `sources.read` takes for the same path; anything else as it is."""
    if not isinstance(source, os.PathLike):
        return source
    path = os.fsdecode(source)
    return path if os.path.isabs(path) else os.path.join(".", path)  # never taken for a URL, whatever its name


def array_picture(array: np.ndarray) -> Image.Image:
    """An array as a picture.

    Args:
        array: uint8 ``[height, width, 3]`` (RGB), ``[height, width, 4]`` (RGBA) or ``[height, width]`` (grey).

    Raises:
        MediaError: an array of another kind.
    """
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (3, 4)):
        raise MediaError(
            "an array is a picture if it is uint8 [height, width, 3], [height, width, 4] or [height, width], not "
            f"{array.dtype} {list(shape)}"
        )
    if not array.size:
        raise MediaError(f"a picture of {shape[1]}x{shape[0]} pixels has no content")
    return Image.fromarray(np.ascontiguousarray(array))


def check_video(video: Video, limits: ServingLimits) -> Video:
    """A video whose frames were picked by the caller.

    Raises:
        MediaError: frames of another shape, times that are not theirs, or more than is allowed.
    """
    frames: Any = video.frames
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise MediaError("the frames of a video must be an array of uint8 [frames, height, width, 3]")
    if len(frames) != len(video.timestamps_s):
        raise MediaError(f"the video has {len(frames)} frames but {len(video.timestamps_s)} timestamps")
    if not np.isfinite(np.asarray(video.timestamps_s, np.float64)).all() or not 0 < video.fps < float("inf"):
        raise MediaError("the video's timestamps must be numbers, and its fps a number above 0")
    check_frames(len(frames), limits)
    check_size(frames.shape[2], frames.shape[1], VIDEO, limits)
    return video


def check_frames(count: int, limits: ServingLimits) -> None:
    """Refuse a video of which too many frames would be used.

    Raises:
        MediaError: more than `limits.max_video_frames`.
    """
    if count > limits.max_video_frames:
        raise MediaError(
            f"{count} frames of the video would be used; at most {limits.max_video_frames} are allowed: send a shorter "
            "one, or one with fewer frames per second"
        )
