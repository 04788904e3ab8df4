"""Video: the frames a model wants, decoded behind bounds."""

import bisect
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.media import Video
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.containers import check_lost, check_time, decoded, opened
from epdjax.serving.media.given import LIST_FPS, check_frames, check_video, named_path
from epdjax.serving.media.images import load_image
from epdjax.serving.media.rotation import display_matrix, turned
from epdjax.serving.media.sources import VIDEO, Reserve, check_size, no_reserve, read

FORMATS = "MP4, WebM, MKV, MOV, AVI or GIF"
MATROSKA_TICK = Fraction(1, 1000)
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
        source: see `sources.read`; a ``pathlib.Path``, which is read like a path in a string; a `Video`, whose frames
            are taken as they are; or the frames alone, a list of pictures (PIL, or arrays as `load_image` takes them)
            or an array uint8 ``[frames, height, width, 3]``. Frames alone count as sampled already, and are taken to be
            24 to the second, as in transformers: a `Video` says it better.
        limits: what is allowed.
        sample: which frames to keep.
        deadline: `time.monotonic()` at which to give up downloading and decoding.
        reserve: told of the bytes of all frames that are kept.

    Returns:
        The frames as they are to be shown, turned as the file says, with times that count from the first frame.

    Raises:
        MediaError: says what to change.
    """
    deadline = time.monotonic() + limits.media_timeout_s if deadline is None else deadline
    if isinstance(source, (list, tuple)):
        source = _listed(source, limits, deadline)
    if isinstance(source, np.ndarray):
        source = Video(source, np.arange(len(source)) / LIST_FPS if source.ndim else np.zeros(0), LIST_FPS)
    if isinstance(source, Video):
        return check_video(source, limits)
    data = read(named_path(source), VIDEO, limits, deadline)
    clock = _measure(data, limits, deadline)
    wanted = _wanted(sample, clock.count, float(clock.rate), limits)
    found = _decode(data, wanted, clock, limits, deadline, reserve)
    if len(found.kept) < len(wanted):
        # Packets and frames need not be as many: sample again among the frames that there really are.
        shown = found.shown
        clock = dataclasses.replace(clock, count=len(shown) + found.lost)
        wanted = {
            shown[index] for index in _wanted(sample, len(shown), float(clock.rate), limits) if index < len(shown)
        }
        found = _decode(data, wanted, clock, limits, deadline, no_reserve)
    if not found.kept:
        raise MediaError(f"the video has no frames that can be decoded; send the whole file, as {FORMATS}")
    frames, seconds = zip(*(found.kept[index] for index in sorted(found.kept)))
    return Video(np.stack(frames), np.asarray(seconds, np.float64), float(clock.rate), clock.count)


@dataclasses.dataclass(frozen=True)
class _Clock:
    """When the frames of a video are shown.

    Attributes:
        count: how many there are.
        first, last: when the first and last are shown, in ticks; None: the packets do not say.
        tick: seconds, what the container rounds to.
        declared: frames per second by the header.
    """

    count: int
    first: int | None
    last: int | None
    tick: Fraction
    declared: Fraction | None

    @property
    def rounding(self) -> Fraction:
        """How far a time may be from the true one: containers round to ticks, and many were Matroska once."""
        return max(self.tick, MATROSKA_TICK)

    @property
    def rate(self) -> Fraction:
        """Frames per second, by the packets: what headers say is often wrong, or missing.

        Of the rates that the rounding of times leaves possible, a simple one is taken.
        """
        ticks = (self.last or 0) - (self.first or 0)
        if ticks <= 0 or self.count < 2:
            return Fraction(self.declared or 1)
        measured = (self.count - 1) / (ticks * self.tick)
        whole = Fraction(max(1, round(measured)))
        for simple in (self.declared, whole, whole * 1000 / 1001):
            if simple and abs((self.count - 1) / Fraction(simple) - ticks * self.tick) < self.rounding:
                return Fraction(simple)
        return measured

    def seconds(self, pts: int | None, index: int) -> float:
        """When a frame is shown after the first: its own time, freed of rounding where the rate is steady."""
        steady = index / self.rate
        if pts is None or self.first is None or abs((pts - self.first) * self.tick - steady) < self.rounding:
            return index / float(self.rate)
        return float((pts - self.first) * self.tick)


@dataclasses.dataclass
class _Found:
    """What decoding a video has found.

    Attributes:
        kept: index -> (frame, when it is shown) of the wanted frames that there are.
        shown: indices of all frames that came out, up to the last one wanted.
        lost: packets that could not be decoded.
    """

    kept: dict[int, tuple[np.ndarray, float]] = dataclasses.field(default_factory=dict)
    shown: list[int] = dataclasses.field(default_factory=list)
    lost: int = 0


def _listed(frames: Sequence[Any], limits: ServingLimits, deadline: float) -> np.ndarray:
    """Frames that were picked by the caller, as one array."""
    if not frames or not all(isinstance(frame, (np.ndarray, Image.Image)) for frame in frames):
        raise MediaError(
            "a list is a video if it has frames in it, pictures (PIL) or arrays of uint8, and nothing else"
        )
    check_frames(len(frames), limits)
    arrays = [np.asarray(load_image(frame, limits, deadline=deadline)) for frame in frames]
    if len(sizes := {array.shape for array in arrays}) > 1:
        text = ", ".join(sorted(f"{width}x{height}" for height, width, _ in sizes))
        raise MediaError(f"the frames of a video must be of one size, not of {text}")
    if len(arrays) * arrays[0].shape[0] * arrays[0].shape[1] > limits.max_request_pixels:
        raise _too_many_pixels(len(arrays), limits)
    return np.stack(arrays)


def _wanted(sample: Sampler, count: int, fps: float, limits: ServingLimits) -> set[int]:
    wanted = {int(index) for index in sample(count, fps)} if count else set()
    check_frames(len(wanted), limits)
    return wanted


def _measure(data: bytes, limits: ServingLimits, deadline: float) -> _Clock:
    """Counts the packets of a video and reads their times, without decoding them."""
    with opened(data, VIDEO, FORMATS) as container:
        stream = _stream(container)
        check_size(stream.codec_context.width, stream.codec_context.height, VIDEO, limits)
        tick = stream.time_base or Fraction(0)
        count, first, last = 0, None, None
        for packet in container.demux(stream):
            check_time(deadline, VIDEO)
            if not packet.size or packet.is_discard:
                continue  # the end of the file; what an edit list cuts off
            count += 1
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                continue
            first, last = min(pts, pts if first is None else first), max(pts, pts if last is None else last)
            if (last - first) * tick > limits.max_video_seconds:
                raise MediaError(
                    f"the video is longer than {limits.max_video_seconds:g} seconds; send a shorter one, or cut it"
                )
        return _Clock(count, first, last, tick, stream.average_rate or stream.guessed_rate)


def _decode(
    data: bytes, wanted: set[int], clock: _Clock, limits: ServingLimits, deadline: float, reserve: Reserve
) -> _Found:
    """Decodes up to the last wanted frame. A packet that cannot be decoded takes the index of its frame with it."""
    found, lost_pts = _Found(), list[float]()
    size: tuple[int, ...] | None = None
    with opened(data, VIDEO, FORMATS) as container:
        stream = _stream(container)
        for packet in container.demux(stream):
            check_time(deadline, VIDEO)
            frames = decoded(packet)
            if frames is None:
                found.lost += 1
                bisect.insort(lost_pts, -math.inf if packet.pts is None else packet.pts)
                check_lost(found.lost, clock.count, VIDEO, FORMATS)
            for frame in frames or ():
                shown_at = math.inf if frame.pts is None else frame.pts
                index = len(found.shown) + bisect.bisect_left(lost_pts, shown_at)
                found.shown.append(index)
                if index not in wanted:
                    continue
                check_size(frame.width, frame.height, VIDEO, limits)
                if size is None:  # all others are brought to its size
                    reserve(3 * frame.width * frame.height * len(wanted))
                pixels = _pixels(frame, size)
                size = pixels.shape
                found.kept[index] = pixels, clock.seconds(frame.pts, index)
                if len(found.kept) * size[0] * size[1] > limits.max_request_pixels:
                    raise _too_many_pixels(len(wanted), limits)
                if len(found.kept) == len(wanted):
                    return found
    return found


def _pixels(frame: Any, size: tuple[int, ...] | None) -> np.ndarray:
    """A frame as it is to be shown, uint8 ``[height, width, 3]``, in the size of those before it."""
    matrix = display_matrix(frame)
    pixels_hwc = turned(frame.to_ndarray(format="rgb24"), matrix)
    if size is None or pixels_hwc.shape == size:
        return pixels_hwc
    # Some streams change their size on the way.
    return np.asarray(Image.fromarray(pixels_hwc).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise MediaError(f"the file has no video in it; send {FORMATS}")
    return container.streams.video[0]


def _too_many_pixels(frames: int, limits: ServingLimits) -> MediaError:
    return MediaError(
        f"the video's {frames} frames have more than {limits.max_request_pixels} pixels together; send a smaller or "
        "shorter one"
    )
