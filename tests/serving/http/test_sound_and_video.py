"""Audio and video of requests: decoded as they are, refused where they must be."""

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from epdjax.models.media import Audio, Video
from epdjax.serving.errors import InvalidRequest, MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.audio import load_audio
from epdjax.serving.media.video import load_video
from tests.serving.http.films import film
from tests.serving.http.sounds import RATE, compressed, tone, wav
from tests.serving.media.resolved import resolve_messages

LIMITS = ServingLimits(max_audio_seconds=5, max_video_frames=16, max_video_seconds=120, max_image_pixels=10_000)


def every(step: int) -> Callable[[int, float], np.ndarray]:
    return lambda frames, fps: np.arange(0, frames, step)


def test_wav_is_taken_sample_by_sample() -> None:
    sound = tone(0.5)
    audio = load_audio(wav(sound), LIMITS, RATE)
    assert audio.rate == RATE and audio.samples.dtype == np.float32
    np.testing.assert_array_equal(audio.samples, sound[:, 0].astype(np.float32) / 32768)


@pytest.mark.parametrize(("codec", "container"), [("flac", "flac"), ("libmp3lame", "mp3"), ("aac", "mp4")])
def test_compressed_sound(codec: str, container: str) -> None:
    sound = tone(1.0)
    audio = load_audio(compressed(sound, codec, container), LIMITS, RATE)
    assert abs(len(audio.samples) - RATE) < 3000  # some codecs pad
    spectrum = np.abs(np.fft.rfft(audio.samples[2000:14000]))
    assert abs(int(spectrum.argmax()) * RATE / 12000 - 440) < 2


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_odd_rates_and_stereo(rate: int) -> None:
    audio = load_audio(wav(tone(1.0, rate, channels=2), rate), LIMITS, RATE)
    assert abs(len(audio.samples) - RATE) < 100
    middle = audio.samples[4000:12000]
    assert abs(int(np.abs(np.fft.rfft(middle)).argmax()) * RATE / 8000 - 440) < 3
    mean = 20000 / 32768 / 2  # of a tone and silence
    assert abs(np.sqrt(2 * np.mean(middle.astype(np.float64) ** 2)) - mean) < 1e-3 * mean


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "empty"),
        (b"just some words", "damaged"),
        (wav(tone(0.0)), "no sound"),
        (wav(tone(6.0)), "longer than 5 seconds"),
        (wav(np.zeros((8000 * 60, 1), np.int16), 8000), "longer than 5 seconds"),
        (wav(tone(1.0))[:30], "damaged"),
        (film(2), "no sound in it"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "damaged"),
        (Audio(np.zeros(100, np.float32), 3000), "3000 samples per second; send one of 4000 to 384000"),
        (Audio(np.zeros((2, 100), np.float32), RATE), "one channel"),
        (Audio(np.full(100, np.nan, np.float32), RATE), "not numbers"),
        (3, "must be a URL"),
    ],
)
def test_sound_that_is_refused(source: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load_audio(source, LIMITS, RATE)


def test_frames_are_the_sampled_ones() -> None:
    video = load_video(film(20), LIMITS, every(3))
    assert video.frames.shape == (7, 48, 64, 3) and video.fps == 10
    np.testing.assert_allclose(video.timestamps_s, np.arange(0, 20, 3) / 10, atol=1e-6)
    np.testing.assert_allclose(video.frames.mean((1, 2, 3)), 8 * np.arange(0, 20, 3), atol=6)


@pytest.mark.parametrize(
    ("source", "sample", "says"),
    [
        (b"", every(1), "empty"),
        (b"just some words", every(1), "damaged"),
        (film(10)[:400], every(1), "damaged|no frames"),
        (wav(tone(0.1)), every(1), "no video in it"),
        (film(1000, fps=100), every(1), "1000 frames of the video would be used; at most 16"),
        (film(130, fps=1), every(50), "longer than 120 seconds"),
        (film(2, width=320, height=240), every(1), "at most 10000 pixels"),
        (Video(np.zeros((2, 8, 8), np.uint8), np.zeros(2), 1.0), every(1), "array of uint8"),
        (Video(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3), 1.0), every(1), "3 timestamps"),
        (Video(np.zeros((17, 8, 8, 3), np.uint8), np.zeros(17), 1.0), every(1), "at most 16"),
    ],
)
def test_videos_that_are_refused(source: Any, sample: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load_video(source, LIMITS, sample)


class Everything:
    """A model that takes all kinds of media."""

    placeholders: ClassVar[dict[str, str]] = {"image": "<i>", "video": "<v>", "audio": "<a>"}
    sampling_rate = RATE

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        return np.arange(0, frames, 5)


def url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_parts_of_messages() -> None:
    sound, video = wav(tone(0.1)), film(10)
    parts = [
        {"type": "text", "text": "hear and see"},
        {"type": "audio_url", "audio_url": {"url": url("audio/wav", sound)}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}},
        {"type": "video_url", "video_url": url("video/mp4", video)},
    ]
    [message] = resolve_messages([{"role": "user", "content": parts}], LIMITS, Everything())
    text, first, second, seen = message["content"]
    assert text == parts[0]
    assert len(first["audio"].samples) == 1600
    np.testing.assert_array_equal(first["audio"].samples, second["audio"].samples)
    assert seen["video"].frames.shape == (2, 48, 64, 3)


def test_what_a_model_does_not_take() -> None:
    part = {"type": "video_url", "video_url": url("video/mp4", film(2))}
    with pytest.raises(InvalidRequest, match=r"takes no video input; it takes text, image$"):
        resolve_messages([{"role": "user", "content": [part]}], LIMITS)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "audio_url", "audio_url": url("image/png", b"x")}, "not that of a clip"),
        ({"type": "video_url", "video_url": ""}, "has no video"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "has no data"),
    ],
)
def test_parts_that_are_refused(part: Any, says: str) -> None:
    with pytest.raises((InvalidRequest, MediaError), match=says):
        resolve_messages([{"role": "user", "content": [part]}], LIMITS, Everything())


def test_too_many() -> None:
    part = {"type": "audio", "audio": Audio(np.zeros(100, np.float32), RATE)}
    with pytest.raises(MediaError, match="3 clips; at most 2"):
        limits = ServingLimits(max_audios_per_request=2)
        resolve_messages([{"role": "user", "content": [part] * 3}], limits, Everything())
