"""Workloads as sizes: what is drawn, when it comes, and what it is in a model."""

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.models.presets import preset
from epdjax.planning.arrivals import KINDS, Arrivals
from epdjax.planning.distributions import Distribution
from epdjax.planning.media_sizes import Media, unit_shapes
from epdjax.planning.traces import read_trace, write_trace
from epdjax.planning.workloads import WORKLOADS, Ask, request_specs, workload

MINICPM = preset("MiniCPM-V-2.6")[1]
INTERNVL = preset("InternVL2-8B")[1]


@pytest.mark.parametrize(
    ("size", "minicpm", "internvl"), [((313, 234), 1, 13), ((787, 444), 3, 3), ((4032, 3024), 10, 13)]
)
def test_pictures_have_as_many_tiles_as_the_paper_says(size: tuple[int, int], minicpm: int, internvl: int) -> None:
    media = Media("image", *size)
    assert [shape.tokens for shape in unit_shapes(MINICPM, media)] == [64] * minicpm
    assert [shape.tokens for shape in unit_shapes(INTERNVL, media)] == [256] * internvl


def test_frames_and_clips() -> None:
    assert len(unit_shapes(MINICPM, Media("video", 448, 336, frames=8))) == 8
    assert len(unit_shapes(INTERNVL, Media("video", 1920, 1080, frames=5))) == 5
    ultravox = preset("Ultravox-v0.3")[1]
    (shape,) = unit_shapes(ultravox, Media("audio", seconds=10))
    assert (shape.size, shape.tokens) == (1000, 63)


def test_media_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="not 'smell'"):
        Media("smell")
    with pytest.raises(ValueError, match="at least 1, not 0 x 5"):
        Media("image", 0, 5)
    with pytest.raises(ValueError, match="lasts more than 0 seconds"):
        Media("audio")
    with pytest.raises(ValueError, match="no audio"):
        unit_shapes(MINICPM, Media("audio", seconds=1))
    with pytest.raises(ValueError, match="units of Llava are not known"):
        unit_shapes(preset("LLaVA-1.5-7B")[1], Media())


@given(st.one_of(st.integers(0, 999).map(str), st.tuples(st.integers(0, 9), st.integers(9, 99)).map("%d..%d".__mod__)))
def test_distributions_are_what_they_say(text: str) -> None:
    found = Distribution.parse(text)
    assert str(found) == text
    values = {found.sample(random.Random(seed)) for seed in range(20)}
    assert min(found.values) <= min(values) and max(values) <= max(found.values)


def test_distributions() -> None:
    rng = random.Random(0)
    drawn = [Distribution.parse("lognormal:200:0.8", least=5).sample(rng) for _ in range(2000)]
    assert 180 < statistics.median(drawn) < 220 and min(drawn) >= 5
    assert {Distribution.parse("choice:1,2,4").sample(rng) for _ in range(50)} == {1, 2, 4}
    for wrong in ("", "many", "4..2", "-1", "lognormal:0:1", "lognormal:5", "choice:", "choice:1,x"):
        with pytest.raises(ValueError, match="is none of"):
            Distribution.parse(wrong)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "at-once"])
def test_arrivals_have_their_rate(kind: str) -> None:
    times = list(itertools.islice(Arrivals(kind, ramp_s=1.0, end=1.0).times(5.0, random.Random(0)), 4000))
    assert times == sorted(times)
    assert 4000 / times[-1] == pytest.approx(5.0, rel=0.1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    spread = statistics.stdev(gaps) / statistics.mean(gaps)
    assert spread == pytest.approx({"constant": 0, "gamma": 2}.get(kind, 1), abs=0.15)


def test_a_ramp_becomes_steeper() -> None:
    times = Arrivals("ramp", start=0.2, end=2.0, ramp_s=100).times(10.0, random.Random(0))
    early, late = 0, 0
    for at in itertools.takewhile(lambda at: at < 120, times):
        early, late = early + (at < 20), late + (at >= 100)
    assert 60 < early < 110 and 350 < late < 450


def test_bad_arrivals() -> None:
    with pytest.raises(ValueError, match="not 'tidal'"):
        Arrivals("tidal")
    with pytest.raises(ValueError, match="burstiness"):
        Arrivals(burstiness=0)
    with pytest.raises(ValueError, match="rate"):
        Arrivals().times(0.0, random.Random(0))


def test_named_workloads() -> None:
    asks = workload("pictures-4").asks(2.0, 50)
    assert asks == workload("pictures-4").asks(2.0, 50) != workload("pictures-4").asks(2.0, 50, seed=1)
    assert {(len(ask.media), ask.text_tokens, ask.output_tokens) for ask in asks} == {(4, 22, 10)}
    assert [ask.output_tokens for ask in workload("role-switching").asks(3.0, 100)] == [50] * 10 + [500] * 90
    assert {ask.at_s for ask in workload("offline").asks(1.0, 9)} == {0.0}
    shares = [bool(ask.media) for ask in workload("chat").asks(1.0, 2000)]
    assert 0.07 < sum(shares) / len(shares) < 0.13
    with pytest.raises(ValueError, match="did you mean 'pictures-4'"):
        workload("picture-4")
    assert all(spec.asks(1.0, 3) for spec in WORKLOADS.values())


def test_what_the_scheduler_is_told() -> None:
    asks = [Ask(0.5, 22, 10, (Media("image", 787, 444),) * 2, contents=("cat", "cat")), Ask(1.0, 7, 3)]
    (at, first), (_, second) = request_specs(asks, MINICPM, unit_sizes=(800, 1200))
    assert (at, first.prompt_tokens, first.max_tokens, first.units) == (0.5, 22 + 6 * 64, 10, 6)
    assert first.unit_keys[:3] == first.unit_keys[3:] and len(set(first.unit_keys)) == 3
    assert first.unit_starts == (0, 64, 128, 192, 256, 320)
    sizes = [shape.size for shape in unit_shapes(MINICPM, asks[0].media[0])]
    assert first.unit_buckets == tuple(int(size > 800) for size in sizes) * 2
    assert second.units == 0 and second.prompt_tokens == 7


def test_traces(tmp_path) -> None:
    asks = workload("chat").asks(2.0, 40)
    write_trace(tmp_path / "trace.jsonl", asks)
    assert read_trace(tmp_path / "trace.jsonl") == asks


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "an object"),
        ('{"at_s": 1, "output_tokens": 3}', "text_tokens"),
        ('{"at_s": -1, "text_tokens": 1, "output_tokens": 3}', "at_s"),
        ('{"at_s": 1, "text_tokens": 0, "output_tokens": 3}', "text_tokens"),
        ('{"at_s": 1, "text_tokens": 1, "output_tokens": 3, "colour": 1}', "colour"),
        ('{"at_s": 1, "text_tokens": 1, "output_tokens": 3, "media": [{"kind": "x"}]}', "of kind"),
        ('{"at_s": 1, "text_tokens": 1, "output_tokens": 3, "media": [{"size": 3}]}', "size"),
        ('{"at_s": 1, "text_tokens": 1, "output_tokens": 3, "media": [{}], "contents": [1, 2]}', "contents"),
    ],
)
def test_a_malformed_trace_line_is_named(tmp_path, line: str, why: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at_s": 0, "text_tokens": 5, "output_tokens": 2}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"line 3.*{why}"):
        read_trace(path)
