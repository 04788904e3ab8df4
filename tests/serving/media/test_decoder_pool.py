"""Decoder processes: whatever happens to one costs its own file, and nothing of it is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epdjax.models.media import Audio, Video
from epdjax.serving.errors import MediaError, Overloaded, PreprocessingFailed, ServiceUnavailable
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media import decoder_pool
from epdjax.serving.media.decoder_pool import DecoderPool
from epdjax.serving.media.sources import CLIP, PICTURE, VIDEO, Kind
from tests.serving.deployments import eventually
from tests.serving.http.films import film
from tests.serving.http.pictures import data_url, encoded, picture
from tests.serving.http.sounds import tone, wav

ODD = ("-m", "tests.serving.media.odd_decoder")
LONG = 60.0


@pytest.fixture(scope="module")
def odd(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    pool = DecoderPool(ServingLimits(), 1, ODD)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        patch.setattr(decoder_pool, "SLOW_S", 0.2)
        yield patch


class Reserved:
    """What was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size: int, until: float) -> None:
        self.sizes.append(size)


def load(pool: DecoderPool, words: str, seconds: float = LONG, **more: Any) -> Any:
    settings: dict[str, Any] = {"reserve": lambda size, until: None, **more}
    return pool.load(PICTURE, words.encode(), deadline=time.monotonic() + seconds, **settings)


@pytest.mark.parametrize(
    ("kind", "words", "error", "says"),
    [
        (PICTURE, "crash", MediaError, "its decoder ended"),
        (PICTURE, "memory", PreprocessingFailed, "its log has the reason"),
        (PICTURE, "bug", PreprocessingFailed, "its log has the reason"),
        (PICTURE, "refuse", MediaError, "this is no picture; send another"),
        (PICTURE, "lie", MediaError, "its decoder ended"),
        (VIDEO, "ok", MediaError, "its decoder ended"),
    ],
)
def test_what_goes_wrong_costs_its_own_file(
    odd: DecoderPool, kind: Kind, words: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        odd.load(kind, words.encode(), deadline=time.monotonic() + LONG, reserve=lambda size, until: None)
    assert "secret" not in str(caught.value)
    assert load(odd, "ok").getpixel((0, 0)) == (1, 2, 3)
    assert len(odd.processes) == 1


def test_a_decoder_that_sleeps_is_ended_at_its_deadline(odd: DecoderPool) -> None:
    load(odd, "ok")
    before = odd.processes
    with pytest.raises(MediaError, match="takes too long to decode"):
        load(odd, "sleep 60", seconds=0.5)
    assert all(_is_gone(pid) for pid in before)
    assert load(odd, "ok").size == (3, 2)


def test_slow_files_let_others_pass_but_not_without_end(odd: DecoderPool) -> None:
    """One place, and one for a slow file: a second slow file keeps the place."""
    slow = [threading.Thread(target=_ignored, args=(odd, "sleep 60", 8.0)) for _ in range(2)]
    slow[0].start()
    eventually(lambda: odd._slow._value == 0)
    began = time.monotonic()
    assert load(odd, "ok").size == (3, 2)  # beside the slow one
    assert slow[0].is_alive() and time.monotonic() - began < 8
    slow[1].start()
    eventually(lambda: odd._turns._value == 0)
    with pytest.raises(Overloaded, match="too many pictures are being decoded"):
        load(odd, "ok", seconds=0.5)
    for thread in slow:
        thread.join()
    assert (odd._turns._value, odd._slow._value) == (1, 1)
    assert load(odd, "ok").size == (3, 2)
    assert len(odd.processes) == 1


def test_a_child_that_was_killed_while_idle_is_replaced(odd: DecoderPool) -> None:
    load(odd, "ok")
    [pid] = odd.processes
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: odd._idle[0].status is not None)
    assert load(odd, "ok").size == (3, 2)


def test_memory_is_asked_for_before_it_is_taken(odd: DecoderPool) -> None:
    asked = Reserved()
    load(odd, "reserve 1000", reserve=asked)
    assert asked.sizes == [1000]

    def full(size: int, until: float) -> None:
        raise Overloaded("no room", retry_after_s=1)

    with pytest.raises(Overloaded, match="no room"):
        load(odd, "reserve 1000", seconds=1.0, reserve=full)
    assert load(odd, "ok").size == (3, 2)


def test_closing_waits_for_no_decoder() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        pool = DecoderPool(ServingLimits(), 2, ODD)
        errors: list[BaseException] = []

        def sleeping() -> None:
            try:
                load(pool, "sleep 60")
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=sleeping)
        thread.start()
        eventually(lambda: bool(pool.processes))
        pids = pool.processes
        pool.close()
        thread.join(30)
    assert [type(error) for error in errors] == [ServiceUnavailable]
    assert not pool.processes and all(_is_gone(pid) for pid in pids)
    with pytest.raises(ServiceUnavailable):
        load(pool, "ok")


def test_children_end_when_the_server_is_killed() -> None:
    code = """
import os, time
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.decoder_pool import DecoderPool
pool = DecoderPool(ServingLimits(), 2)
pool.start()
print(*pool.processes, flush=True)
time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pids = [int(pid) for pid in server.stdout.readline().split()]
    server.kill()
    server.wait()
    server.stdout.close()
    assert len(pids) == 2
    eventually(lambda: all(_is_gone(pid) for pid in pids))


def test_a_child_imports_neither_jax_nor_transformers(odd: DecoderPool) -> None:
    assert load(odd, "modules").size == (1, 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(ServingLimits(), 1)
    yield pool
    pool.close()


def test_a_picture_comes_back_to_the_bit(pool: DecoderPool) -> None:
    noise = picture(37, 53)
    pixels = np.asarray(noise)
    reserved = Reserved()
    for source in (encoded(noise), data_url(encoded(noise))):
        decoded = pool.load(PICTURE, source, deadline=time.monotonic() + LONG, reserve=reserved)
        assert np.array_equal(np.asarray(decoded), pixels)
    assert reserved.sizes == [pixels.nbytes] * 2


def test_a_video_comes_back_with_the_frames_that_were_asked_for(pool: DecoderPool) -> None:
    seen: list[tuple[int, float]] = []

    def sample(frames: int, fps: float) -> np.ndarray:
        seen.append((frames, fps))
        return np.array([0, frames - 1])

    reserved = Reserved()
    video = pool.load(
        VIDEO,
        film(frames=8, fps=4),
        deadline=time.monotonic() + LONG,
        reserve=reserved,
        sample=sample,
    )
    assert isinstance(video, Video) and seen == [(8, 4.0)]
    assert len(video.frames) == 2 and video.timestamps_s.tolist() == [0.0, 1.75] and video.source_frames == 8
    assert reserved.sizes == [video.frames.nbytes]


def test_sound_comes_back_to_the_bit(pool: DecoderPool) -> None:
    samples = tone(0.1)
    clip = pool.load(CLIP, wav(samples), deadline=time.monotonic() + LONG, reserve=lambda size, until: None, rate=16000)
    assert isinstance(clip, Audio) and clip.rate == 16000 and len(clip.samples) == 1600


def test_nothing_is_left_of_what_was_decoded(pool: DecoderPool) -> None:
    file = encoded(picture(500, 500))

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    pool.load(PICTURE, file, deadline=time.monotonic() + LONG, reserve=lambda size, until: None)
    before = descriptors()
    for _ in range(20):
        pool.load(PICTURE, file, deadline=time.monotonic() + LONG, reserve=lambda size, until: None)
        with pytest.raises(MediaError):
            pool.load(PICTURE, file[:100], deadline=time.monotonic() + LONG, reserve=lambda size, until: None)
    assert descriptors() == before


def _ignored(pool: DecoderPool, words: str, seconds: float) -> None:
    with pytest.raises(MediaError):
        load(pool, words, seconds)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
