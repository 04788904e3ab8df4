"""Video as phones, browsers and recorders make it: turned, cut, damaged, with headers that say something else."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from epdjax import Video
from epdjax.models.families.qwen_vl.video import ClipSettings, VideoSettings, group_seconds
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.video import load_video
from tests.serving.http.films import broken, film, held

LIMITS = ServingLimits(max_video_frames=64, max_video_seconds=120)


def every(step: int, start: int = 0) -> Callable[[int, float], np.ndarray]:
    return lambda frames, fps: np.arange(start, frames, step)


def load(source: Any, sample: Any = None, limits: ServingLimits = LIMITS) -> Video:
    return load_video(source, limits, sample or every(1))


def grays(video: Video) -> np.ndarray:
    """Of each frame."""
    return video.frames.mean((1, 2, 3))


TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "90 clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    "180": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
    "90 counterclockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    "rows and columns swapped": ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    "swapped along the other diagonal": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(1, 2), 2, (1, 2))),
}


@pytest.mark.parametrize("name", TURNS)
def test_frames_are_turned_as_the_file_says(name: str) -> None:
    matrix, turn = TURNS[name]
    plain = film(4, corner=True)
    np.testing.assert_array_equal(load(held(plain, *matrix)).frames, turn(load(plain).frames))


def test_a_video_that_leans_is_left_as_it_is() -> None:
    np.testing.assert_array_equal(
        load(held(film(2, corner=True), 1, 1, -1, 1)).frames, load(film(2, corner=True)).frames
    )


@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("webm", "libvpx")])
def test_the_rate_is_that_of_the_packets(container: str, codec: str) -> None:
    """10 s at 30 frames a second are 20 frames to Qwen-VL, though the header speaks of 1000, as browsers' do."""
    for declared in (None, 1000):
        data = film(300, 30, 32, 32, container=container, codec=codec, declared=declared)
        for settings in (VideoSettings.from_hf({}), ClipSettings.from_hf({})):
            video = load(data, lambda frames, fps, settings=settings: settings.sample(frames, fps, 2))
            assert (len(video.frames), video.fps, video.source_frames) == (20, 30.0, 300)


@pytest.mark.parametrize("fps", [1, 7, 12, 24, 29.97, 60])
def test_rates_are_freed_of_rounding(fps: float) -> None:
    """Matroska rounds times to milliseconds."""
    exact = fps if fps != 29.97 else 30000 / 1001
    data = film(25, 10, container="matroska", seconds=[i / exact for i in range(25)])
    video = load(data)
    assert video.fps == exact
    np.testing.assert_array_equal(video.timestamps_s, np.arange(25) / exact)


def test_times_of_a_rate_that_varies() -> None:
    seconds = [0, 0.1, 0.2, 3.0, 3.1, 7.5]
    video = load(film(6, container="matroska", seconds=seconds))
    assert video.fps == pytest.approx(5 / 7.5)
    np.testing.assert_allclose(video.timestamps_s, seconds, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [0, 0.75, 100, 7200])
@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("mp4", "mpeg4"), ("mpegts", "libx264")])
def test_times_count_from_the_first_frame(start: float, container: str, codec: str) -> None:
    """A clip cut out of a recording is as long as it is."""
    data = film(20, 25, container=container, codec=codec, seconds=[start + i / 25 for i in range(20)])
    video = load(data, every(2))
    assert video.fps == 25 and len(video.frames) == 10
    np.testing.assert_array_equal(video.timestamps_s, np.arange(0, 20, 2) / 25)


@pytest.mark.parametrize("fps", [10, 24, 30])
@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_times_in_prompts_are_those_of_transformers(container: str, fps: int) -> None:
    """Qwen3-VL's ``<0.3 seconds>``, for a clip cut out of a recording and with a header that says 1000."""
    settings = ClipSettings.from_hf({})
    indices = settings.sample(75, fps, 2).tolist()
    theirs = Qwen3VLProcessor._calculate_timestamps(None, list(indices), float(fps), 2)  # type: ignore[arg-type]
    seconds = [3600 + i / fps for i in range(75)]
    data = film(75, container=container, width=32, height=32, seconds=seconds, declared=1000)
    video = load(data, lambda frames, rate: settings.sample(frames, rate, 2))
    assert group_seconds(video, 2) == theirs


def test_length_counts_from_the_first_frame() -> None:
    long = film(2, container="matroska", seconds=[7200, 7320.5])
    with pytest.raises(MediaError, match="longer than 120 seconds"):
        load(long)
    assert len(load(film(2, container="matroska", seconds=[7200, 7319.5])).frames) == 2


@pytest.mark.parametrize(("codec", "lost"), [("mpeg4", 17), ("libx264", 20)])
def test_a_packet_that_cannot_be_decoded_costs_its_frame(codec: str, lost: int) -> None:
    """The 18th packet; H.264 stores some frames before those that are shown first."""
    data = film(30, codec=codec)
    whole, less = load(data), load(broken(data, [17]))
    kept = [i for i in range(30) if i != lost]
    assert (less.source_frames, less.fps) == (30, 10.0)
    np.testing.assert_array_equal(less.timestamps_s, whole.timestamps_s[kept])
    np.testing.assert_array_equal(less.frames[:17], whole.frames[:17])


def test_frames_behind_a_lost_one_keep_their_places() -> None:
    data = broken(film(30), [2])
    video = load(data, every(5, start=4))
    np.testing.assert_allclose(video.timestamps_s, np.arange(4, 30, 5) / 10)
    whole = load(film(30), every(5, start=4))
    np.testing.assert_allclose(grays(video), grays(whole), atol=9)  # predicted from the lost one: 8 too dark at most


def test_a_wanted_frame_that_is_lost_is_made_up_for() -> None:
    data = broken(film(30), [10])
    video = load(data, every(10))  # 0, 10 and 20 of the 29 that there are
    np.testing.assert_allclose(video.timestamps_s, [0, 1.1, 2.1])


def test_a_tenth_may_be_lost() -> None:
    assert len(load(broken(film(30), [5, 12, 20])).frames) == 27
    with pytest.raises(MediaError, match=r"video is damaged: 4 of its 30 packets cannot be decoded"):
        load(broken(film(30), [5, 12, 20, 25]))


def test_time_is_looked_at() -> None:
    with pytest.raises(MediaError, match="video takes too long to read"):
        load_video(film(3), LIMITS, every(1), deadline=time.monotonic() - 1)


def test_a_list_of_frames_is_a_sampled_video() -> None:
    arrays = load(film(5)).frames
    pictures = [Image.fromarray(frame) for frame in arrays]
    for source in (arrays, list(arrays), tuple(arrays), pictures, [pictures[0], *arrays[1:]]):
        video = load(source, lambda frames, fps: pytest.fail("they are sampled already"))
        np.testing.assert_array_equal(video.frames, arrays)
        assert video.fps == 24 and (video.timestamps_s == np.arange(5) / 24).all()
    gray = [np.full((8, 9), 7, np.uint8), np.full((8, 9, 4), 7, np.uint8)]
    assert load(gray).frames[:, 0, 0].tolist() == [[7, 7, 7], [248, 248, 248]]


FRAME = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "a list is a video if it has frames in it"),
        ([FRAME, "a.png"], "a list is a video if it has frames in it"),
        ([FRAME, FRAME[:4]], "of one size, not of 8x4, 8x8"),
        ([FRAME.astype(np.float32)], "a picture if it is uint8"),
        ([FRAME] * 65, "65 frames of the video would be used; at most 64"),
        (np.zeros((3, 8, 8), np.uint8), "array of uint8"),
        (np.array(3), "array of uint8"),
        (np.zeros((65, 8, 8, 3), np.uint8), "at most 64"),
        (Video(np.zeros((1, 8, 8, 3), np.uint8), np.array([np.nan]), 1.0), "timestamps must be numbers"),
        (Video(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1), 0.0), "fps a number above 0"),
    ],
)
def test_frames_that_are_refused(source: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load(source)


def test_pixels_of_listed_frames_are_bounded() -> None:
    with pytest.raises(MediaError, match="3 frames have more than 150 pixels together"):
        load([FRAME] * 3, limits=ServingLimits(max_request_pixels=150))


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(film(3))
    limits = ServingLimits(allowed_local_media_path=tmp_path)
    for path in (tmp_path / "a.mp4", Path("a.mp4")):
        assert len(load(path, limits=limits).frames) == 3
        with pytest.raises(MediaError, match="--allowed-local-media-path"):
            load(path)
