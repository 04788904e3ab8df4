"""Sound as recorders, editors and careless tools make it: channels, joined files, bad packets, impossible numbers."""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epdjax import Audio
from epdjax.models.media import LOUDEST
from epdjax.serving.errors import MediaError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media import audio as audio_module
from epdjax.serving.media.audio import load_audio
from tests.serving.http.films import broken
from tests.serving.http.sounds import RATE, compressed, float_wav, tone, wav

LIMITS = ServingLimits(max_audio_seconds=5)
SINE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def samples(source: Any, rate: int = RATE, limits: ServingLimits = LIMITS) -> np.ndarray:
    return load_audio(source, limits, rate).samples


def level(sound: np.ndarray) -> float:
    """Of a tone, from its root mean square."""
    return float(np.sqrt(2 * np.mean(sound.astype(np.float64) ** 2)))


def pitch(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))).argmax()) * RATE / len(sound)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 9])
def test_the_mean_of_the_channels(channels: int) -> None:
    np.testing.assert_array_equal(samples(float_wav(np.repeat(SINE[:, None], channels, 1))), SINE)
    for at in range(channels):
        alone = np.zeros((len(SINE), channels), np.float32)
        alone[:, at] = SINE
        np.testing.assert_allclose(samples(float_wav(alone)), SINE / channels, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_the_mean_of_integers(kind: Any) -> None:
    """2 of 6 channels at half of full scale."""
    sound = np.zeros((800, 6), kind) + (128 if kind is np.uint8 else 0)
    sound[:, 2:4] += kind(2 ** (8 * kind().itemsize - 2))
    data = bytearray(wav(sound.astype(kind)))
    if kind is not np.int16:  # the header that `wav` writes is of 16 bits
        width = kind().itemsize
        data[28:36] = struct.pack("<IHH", RATE * 6 * width, 6 * width, 8 * width)
        data[40:44] = struct.pack("<I", sound.nbytes)
    np.testing.assert_allclose(samples(bytes(data)), np.full(800, 1 / 6), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_keeps_the_level(channels: int, rate: int) -> None:
    t = np.arange(rate) / rate
    same = np.repeat(0.5 * np.sin(2 * np.pi * 440 * t)[:, None], channels, 1).astype(np.float32)
    one = same * (np.arange(channels) == channels - 1)
    for sound, expected in ((same, 0.5), (one, 0.5 / channels)):
        made = samples(float_wav(sound, rate))
        assert abs(len(made) - RATE) <= 1
        assert level(made[2000:14000]) == pytest.approx(expected, rel=1e-3)


def test_the_mean_before_resampling_is_the_mean_behind_it() -> None:
    rng = np.random.default_rng(0)
    sound = rng.uniform(-1, 1, (22050, 6)).astype(np.float32)
    each = [samples(float_wav(sound[:, i : i + 1], 22050)) for i in range(6)]
    np.testing.assert_allclose(samples(float_wav(sound, 22050)), np.mean(each, 0), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("codec", "container", "first", "second"),
    [
        ("libmp3lame", "mp3", (1, 48000), (2, 48000)),
        ("libmp3lame", "mp3", (2, 44100), (1, 44100)),
        ("libmp3lame", "mp3", (1, 48000), (1, 44100)),
        ("libmp3lame", "mp3", (1, 16000), (2, 44100)),
        ("libopus", "ogg", (1, 48000), (2, 48000)),
        ("libopus", "ogg", (6, 48000), (1, 48000)),
    ],
)
def test_joined_files(codec: str, container: str, first: tuple[int, int], second: tuple[int, int]) -> None:
    """Channels, or their rate, change midway: both halves are what they are alone."""

    def file(channels: int, rate: int, hertz: int) -> bytes:
        t = np.arange(rate) / rate
        sound = np.repeat((10000 * np.sin(2 * np.pi * hertz * t)).astype(np.int16)[:, None], channels, 1)
        return compressed(sound, codec, container, rate)

    one, other = file(*first, 440), file(*second, 1000)
    made = samples(one + other)
    assert abs(len(made) - 2 * RATE) < 0.15 * RATE  # MP3 pads
    for half, alone, hertz in ((made[:RATE], samples(one), 440), (made[-RATE:], samples(other), 1000)):
        middle = half[4000:12000]
        assert abs(pitch(middle) - hertz) <= 2
        assert level(middle) == pytest.approx(level(alone[4000:12000]), rel=0.01)
        assert level(middle) == pytest.approx(10000 / 32768, rel=0.1)  # codecs lose some


def test_a_packet_that_cannot_be_decoded_costs_its_frame() -> None:
    data = compressed(tone(2.0), "aac", "mp4")
    whole = samples(data)
    for lost in (1, 3):
        less = samples(broken(data, [10, 14, 18][:lost]))
        assert len(less) == len(whole) - lost * 1024
        np.testing.assert_array_equal(less[:9000], whole[:9000])
    with pytest.raises(MediaError, match=r"damaged: 4 of its 33 packets cannot be decoded"):
        load_audio(broken(data, [10, 14, 18, 22]), LIMITS, RATE)


@pytest.mark.parametrize("rate", [1, 100, 3999, 384_001, 2_000_000])
def test_rates_that_are_no_sound(rate: int) -> None:
    with pytest.raises(MediaError, match=f"has {rate} samples per second; send one of 4000 to 384000"):
        load_audio(float_wav(np.zeros((1000, 1), np.float32), rate), LIMITS, RATE)
    with pytest.raises(MediaError, match="4000 to 384000"):
        load_audio((np.zeros(1000, np.float32), rate), LIMITS, RATE)


@pytest.mark.parametrize("rate", [4000, 384_000])
def test_the_extreme_rates(rate: int) -> None:
    assert abs(len(samples(float_wav(np.zeros((rate, 1), np.float32), rate))) - RATE) <= 2


class CountingResampler:
    """Passes samples on and counts them."""

    given: int = 0

    def __init__(self, **_: Any):
        pass

    def resample(self, frame: Any) -> list[Any]:
        CountingResampler.given += frame.samples if frame is not None else 0
        return []


@pytest.mark.parametrize("compress", [False, True])
def test_length_is_known_before_anything_is_resampled(monkeypatch: pytest.MonkeyPatch, compress: bool) -> None:
    """Two minutes in a file of a few kB: no more than what is allowed is ever given to the resampler."""
    monkeypatch.setattr(audio_module.av, "AudioResampler", CountingResampler)
    CountingResampler.given = 0
    silence = np.zeros((4000 * 120, 1), np.int16)
    data = compressed(silence, "flac", "flac", 4000) if compress else wav(silence, 4000)
    with pytest.raises(MediaError, match="longer than 5 seconds"):
        load_audio(data, LIMITS, RATE)
    assert CountingResampler.given <= 5 * 4000


def test_time_is_looked_at_while_sound_is_decoded() -> None:
    for source in (wav(tone(1.0)), (SINE, 8000)):
        with pytest.raises(MediaError, match="clip takes too long to read"):
            load_audio(source, LIMITS, RATE, deadline=time.monotonic() - 1)


@pytest.mark.parametrize("scale", [3e9, 1e20, 1e37, 3e38])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_amplitudes_beyond_reason(scale: float, rate: int) -> None:
    loud = (SINE * 2 * scale).astype(np.float32)
    for source in (float_wav(loud[:, None], rate), (loud, rate), Audio(loud, rate)):
        with pytest.raises(MediaError, match=r"far beyond full scale; scale them to numbers from -1 to 1"):
            load_audio(source, LIMITS, RATE)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(number: float) -> None:
    sound = SINE.copy()
    sound[100] = number
    for source in (float_wav(sound[:, None]), (sound, 44100), Audio(sound, RATE), (np.full(9, 1e300), RATE)):
        with pytest.raises(MediaError, match="not numbers"):
            load_audio(source, LIMITS, RATE)


def test_loud_but_possible() -> None:
    loud = np.full(1600, LOUDEST, np.float32)
    np.testing.assert_array_equal(samples((loud, RATE)), loud)


def test_samples_with_a_rate() -> None:
    """As vLLM takes them; the same as the sound in a file."""
    np.testing.assert_array_equal(samples((SINE, RATE)), SINE)
    np.testing.assert_array_equal(samples((SINE.astype(np.float64), float(RATE))), SINE)
    np.testing.assert_array_equal(samples((SINE.tolist(), np.int64(RATE))), SINE)
    in_file = samples(float_wav(SINE[:, None], 44100))
    for source in ((SINE, 44100), Audio(SINE, 44100)):
        np.testing.assert_allclose(samples(source), in_file, atol=1e-6, rtol=0)
    clip = load_audio((SINE, 8000), LIMITS, RATE)
    assert clip.rate == RATE and clip.samples.dtype == np.float32 and abs(len(clip.samples) - 2 * RATE) <= 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ((SINE, 44100.5), "whole number of samples per second"),
        ((SINE, np.nan), "whole number of samples per second"),
        ((SINE, "fast"), "whole number of samples per second"),
        ((SINE, True), "whole number of samples per second"),
        ((np.zeros((2, 100), np.float32), RATE), "one channel, an array of one axis, not 2"),
        ((np.zeros(100, np.int16), RATE), "not int16: divide"),
        ((np.zeros(0, np.float32), RATE), "no sound"),
        ((np.zeros(30 * 8000, np.float32), 8000), "longer than 5 seconds"),
        ((SINE, RATE, 1), "not tuple"),
        (SINE, "not ndarray"),
    ],
)
def test_arrays_that_are_refused(source: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load_audio(source, LIMITS, RATE)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(float_wav(SINE[:, None]))
    limits = ServingLimits(allowed_local_media_path=tmp_path)
    for path in (tmp_path / "a.wav", Path("a.wav")):
        np.testing.assert_array_equal(samples(path, limits=limits), SINE)
        with pytest.raises(MediaError, match="--allowed-local-media-path"):
            samples(path)
    with pytest.raises(MediaError, match="not there, or not below"):
        samples(Path("/etc/passwd"), limits=limits)
