"""Video: the frames a model wants, decoded behind bounds."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from epdjax.models.media import Video
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.containers import opened
from epdjax.serving.media.sources import VIDEO, Reserve, check_size, no_reserve, read

FORMATS = "MP4, WebM, MKV, MOV, AVI or GIF"
Sampler = Callable[[int, float], np.ndarray]
"""(frames, frames per second) of a video to the ascending indices of those that a model wants."""


def load_video(
    source: object,
    limits: ServingLimits,
    sample: Sampler,
    *,
    deadline: float | None = None,
    reserve: Reserve = no_reserve,
) -> Video:
    """Makes a video of what a request gives for one.

    Args:
        source: see `sources.read`; or a `Video`, whose frames are taken as they are.
        limits: what is allowed.
        sample: which frames to keep.
        deadline: `time.monotonic()` at which to give up downloading and decoding.

    Raises:
        MediaError: says what to change.
    """
    if isinstance(source, Video):
        frames = source.frames
        if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise MediaError("the frames of a video must be an array of uint8 [frames, height, width, 3]")
        if len(frames) != len(source.timestamps_s):
            raise MediaError(f"the video has {len(frames)} frames but {len(source.timestamps_s)} timestamps")
        _check_frames(len(frames), limits)
        check_size(frames.shape[2], frames.shape[1], VIDEO, limits)
        return source
    data = read(source, VIDEO, limits, deadline)
    deadline = time.monotonic() + limits.media_timeout_s if deadline is None else deadline
    count, fps = _measure(data, limits, deadline)
    kept = _decode(data, _wanted(sample, count, fps, limits), limits, deadline)
    if len(kept) < count and max(kept, default=-1) < count - 1 and not _complete(kept, sample, count, fps):
        # Packets and frames need not be as many: sample again among the frames that there really are.
        count = _decodable(data, deadline)
        kept = _decode(data, _wanted(sample, count, fps, limits), limits, deadline)
    if not kept:
        raise MediaError(f"the video has no frames that can be decoded; send the whole file, as {FORMATS}")
    frames, seconds = zip(*(kept[index] for index in sorted(kept)))
    return Video(np.stack(frames), np.asarray(seconds, np.float64), fps, count)


def _wanted(sample: Sampler, count: int, fps: float, limits: ServingLimits) -> set[int]:
    wanted = {int(index) for index in sample(count, fps)} if count else set()
    _check_frames(len(wanted), limits)
    return wanted


def _complete(kept: dict[int, Any], sample: Sampler, count: int, fps: float) -> bool:
    return len(kept) == len({int(index) for index in sample(count, fps)})


def _measure(data: bytes, limits: ServingLimits, deadline: float) -> tuple[int, float]:
    """(frames, frames per second), from the container's packets: what headers say is often wrong, or missing."""
    with opened(data, VIDEO, FORMATS) as container:
        stream = _stream(container)
        check_size(stream.codec_context.width, stream.codec_context.height, VIDEO, limits)
        count, last = 0, 0.0
        for packet in container.demux(stream):
            if packet.size:
                count += 1
                last = max(last, float((packet.pts or 0) * (packet.time_base or 0)))
            if last > limits.max_video_seconds:
                raise MediaError(
                    f"the video is longer than {limits.max_video_seconds:g} seconds; send a shorter one, or cut it"
                )
            _check_time(deadline)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or (count / last if last else 1.0)
        return count, fps


def _decode(
    data: bytes, wanted: set[int], limits: ServingLimits, deadline: float
) -> dict[int, tuple[np.ndarray, float]]:
    """index -> (frame, when it is shown) of the wanted frames that there are."""
    kept: dict[int, tuple[np.ndarray, float]] = {}
    with opened(data, VIDEO, FORMATS) as container:
        stream = _stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        size: tuple[int, int] | None = None
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                check_size(frame.width, frame.height, VIDEO, limits)
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    frame = frame.reformat(*size)  # some streams change their size on the way
                kept[index] = frame.to_ndarray(format="rgb24"), frame.time if frame.time is not None else index / rate
                if len(kept) * size[0] * size[1] > limits.max_request_pixels:
                    raise MediaError(
                        f"the video's {len(wanted)} frames have more than {limits.max_request_pixels} pixels together; "
                        "send a smaller or shorter one"
                    )
            _check_time(deadline)
            if len(kept) == len(wanted):
                break
    return kept


def _decodable(data: bytes, deadline: float) -> int:
    with opened(data, VIDEO, FORMATS) as container:
        count = 0
        for _ in container.decode(_stream(container)):
            count += 1
            _check_time(deadline)
        return count


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise MediaError(f"the file has no video in it; send {FORMATS}")
    return container.streams.video[0]


def _check_frames(count: int, limits: ServingLimits) -> None:
    if count > limits.max_video_frames:
        raise MediaError(
            f"{count} frames of the video would be used; at most {limits.max_video_frames} are allowed: send a shorter "
            "one, or one with fewer frames per second"
        )


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise MediaError("the video takes too long to read; send a shorter or smaller one")
