"""Profiles are taken of the real steps, say where they come from, and are refused where they do not belong."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from epdjax.cli import main
from epdjax.models.presets import preset
from epdjax.models.registry import config_of, family_for
from epdjax.planning.costs import Profile, ProfiledCosts, Profiler
from epdjax.planning.costs.crowding import crowding
from epdjax.planning.costs.engine_clock import Waited
from epdjax.planning.costs.live import LiveTimes, _answer
from epdjax.planning.costs.overheads import seen_overhead
from epdjax.planning.costs.profile import (
    NAMES,
    Beside,
    ChipSeen,
    DecodePoint,
    EncodePoint,
    Kind,
    LoopTimes,
    ModelSeen,
    MovePoint,
    Overhead,
    PrefillPoint,
    Settings,
    Taken,
    digest,
    mean_of,
)
from epdjax.planning.machine import Machine
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.params import SamplingParams
from epdjax.serving.work import Chunk, Decode, Encode, KVPart, MoveKV, MoveMM, Prefill, Sequence, Unit, UnitMove
from tests.models.tiny import make_tiny_checkpoint, tiny_hf_config

BUCKETS = Buckets(
    units=(1, 2),
    prefill=((1, 64), (1, 128)),
    prefill_pages=(8, 16),
    decode_rows=(2, 4),
    decode_pages=(8, 16),
    move_blocks=(4, 16),
    unit_sizes=(10, 20),
)
# Made up, so that every number that comes out can be worked out by hand.
MADE_UP = Profile(
    taken=Taken("2030-01-01", "nowhere", "", "0", "0"),
    chip=ChipSeen("gpu", "NVIDIA H200", 3, 0),
    model=ModelSeen("made-up", "internvl", "0" * 16),
    settings=Settings("2E1P1D", True, "bfloat16", 16, 64, 256, (8, 16), 5),
    buckets=BUCKETS,
    kinds=(
        Kind(
            "E",
            1,
            2,
            {},
            {"encode": 1.5},
            encode=(EncodePoint(1, 10, 1.0), EncodePoint(2, 10, 1.5), EncodePoint(1, 20, 2.0)),
        ),
        Kind(
            "P",
            1,
            0,
            {},
            {"prefill": 1.25},
            prefill=(
                PrefillPoint(1, 64, 8, 2080.0, 1.0),
                PrefillPoint(1, 64, 8, 6176.0, 2.0),
                PrefillPoint(1, 128, 16, 8256.0, 4.0),
            ),
            mm_moves=(MovePoint(8, 0.1), MovePoint(32, 0.2)),
        ),
        Kind(
            "D",
            1,
            0,
            {},
            {"decode": 1.75},
            decode=(
                DecodePoint(2, 8, 2, 2, 1.0),
                DecodePoint(2, 8, 2, 256, 2.0),
                DecodePoint(4, 8, 1, 1, 2.7),
                DecodePoint(4, 8, 4, 4, 3.0),
                DecodePoint(4, 8, 4, 512, 4.0),
            ),
            kv_moves=(MovePoint(4, 0.5), MovePoint(16, 1.0)),
        ),
    ),
    overhead=Overhead(),
)
OVERHEAD = Overhead({"decode": LoopTimes(0.01, 0.02), "kv_move": LoopTimes(0.05, 0.06)}, 0.2, {"decode": 0.3})
E = InstanceSpec("i0", "E", encode_width=2)
P = InstanceSpec("i1", "P", kv_blocks=9, mm_blocks=9, slots=9)
D = InstanceSpec("i2", "D", kv_blocks=9, slots=9)


def decode(*contexts: int) -> Decode:
    rows = (Sequence(str(i), i, context - 1, ()) for i, context in enumerate(contexts))
    return Decode(0, "i2", tuple(rows))


def prefill(start: int, length: int) -> Prefill:
    return Prefill(0, "i1", (Chunk("r", start, length, False, 0, ()),))


def encode(units: int, bucket: int = 0) -> Encode:
    return Encode(0, "i0", tuple(Unit("r", i, bucket) for i in range(units)))


def move_kv(blocks: int) -> MoveKV:
    return MoveKV(0, "i1", "i2", (KVPart("r", (), tuple(range(blocks)), False, 0),))


def test_a_bucket_takes_what_it_took() -> None:
    costs = ProfiledCosts(MADE_UP)
    assert costs(decode(1, 1), D) == pytest.approx(1.0) and costs(decode(128, 128), D) == pytest.approx(2.0)
    assert costs(prefill(0, 64), P) == pytest.approx(1.0) and costs(prefill(64, 64), P) == pytest.approx(2.0)
    assert [costs(encode(n), E) for n in (1, 2, 3, 4)] == [1.0, 1.0, 1.5, 1.5]
    assert costs(encode(2, bucket=1), E) == 2.0
    assert [costs(move_kv(n), D) for n in (1, 4, 5, 16)] == [0.5, 0.5, 1.0, 1.0]


def test_context_and_padding() -> None:
    costs = ProfiledCosts(MADE_UP)
    assert costs(decode(65, 64), D) == pytest.approx(1.5, rel=1e-2)
    assert costs(decode(1, 1, 1, 1), D) == pytest.approx(3.0, rel=1e-2)
    assert costs(decode(1, 1, 1), D) == pytest.approx(2.9, rel=1e-2), "one of four rows is padding"
    curved = dataclasses.replace(MADE_UP.kinds[2], decode=(*MADE_UP.kinds[2].decode, DecodePoint(4, 8, 2, 2, 2.75)))
    curved_costs = ProfiledCosts(dataclasses.replace(MADE_UP, kinds=(*MADE_UP.kinds[:2], curved)))
    assert curved_costs(decode(1, 1, 1), D) == pytest.approx(2.875, rel=1e-2), "the second costs less than others"
    assert costs(prefill(32, 64), P) == pytest.approx(1.5)
    assert costs(prefill(0, 20), P) < 1.0, "fewer pairs in the same bucket"


def test_beyond_what_was_timed() -> None:
    """Larger deployments: between two buckets on a straight line, and in proportion beyond the last."""
    wider = dataclasses.replace(BUCKETS, decode_rows=(3, 8), units=(1, 4), unit_sizes=(15,), move_blocks=(10, 32))
    costs = ProfiledCosts(MADE_UP, wider)
    assert costs(decode(1, 1, 1), D) == pytest.approx(2.0, rel=1e-2)
    assert costs(decode(*[1] * 8), D) == pytest.approx(6.0, rel=1e-2)
    assert costs(decode(*[1] * 16), D) == pytest.approx(12.0, rel=1e-2), "more than any bucket"
    assert costs(encode(2), E) == pytest.approx(1.5), "between the sizes"
    assert costs(encode(8), E) == pytest.approx((3.0 + 8.0) / 2), "four for each device"
    assert costs(move_kv(5), D) == pytest.approx(0.75) and costs(move_kv(30), D) == pytest.approx(2.0)
    rows = tuple(UnitMove(Unit("r", i, 1), i, (1,)) for i in range(1, 5))
    assert costs(MoveMM(0, "i0", "i1", 0, rows), P) == pytest.approx(0.4)


def test_cores_are_shared_where_devices_are_virtual() -> None:
    assert ProfiledCosts(MADE_UP).machine == Machine()
    costs = ProfiledCosts(dataclasses.replace(MADE_UP, chip=ChipSeen("cpu", "cpu", 3, 2), overhead=OVERHEAD))
    cores = costs.machine.cores
    assert cores is not None and (cores.count, cores.waking_s) == (2, 0.2)
    works = ((encode(1), E), (prefill(0, 64), P), (decode(5), D), (move_kv(1), D))
    assert [cores.demand(work, instance) for work, instance in works] == [1.5, 1.25, 1.75, 1.0]


def test_steps_take_what_they_were_seen_to_take() -> None:
    """Decode beside prefill was 1.5 times as long: 3 of its 2 cores were wanted, 1.75 by itself."""
    beside = (Beside("decode", "prefill", 1.5), Beside("prefill", "decode", 1.0), Beside("encode", "decode", 0.7))
    shared = dataclasses.replace(MADE_UP, chip=ChipSeen("cpu", "cpu", 3, 2), beside=beside)
    cores = ProfiledCosts(shared).machine.cores
    assert cores is not None
    assert cores.takes == {(Prefill, Decode): 3 - 1.75, (Decode, Prefill): 2 - 1.25, (Decode, Encode): 0.0}
    roomy = ProfiledCosts(dataclasses.replace(shared, chip=ChipSeen("cpu", "cpu", 3, 16))).machine.cores
    assert roomy is not None and not roomy.takes


def test_crowding_is_seen_of_each_two_instances() -> None:
    """Steps of one instance never meet."""
    ones = jax.numpy.ones((64, 64))
    calls = {(0, "prefill"): lambda: ones @ ones, (0, "decode"): lambda: ones + ones, (1, "encode"): lambda: ones * 2}
    seen = crowding(calls, rounds=2, least_s=0.0)
    pairs = [("prefill", "encode"), ("encode", "prefill"), ("decode", "encode"), ("encode", "decode")]
    assert [(each.stage, each.other) for each in seen] == pairs and all(each.slower > 0 for each in seen)
    assert crowding({(0, "decode"): lambda: ones}, rounds=2, least_s=0.0) == ()

    def fails() -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        crowding({**calls, (2, "decode"): fails}, rounds=2, least_s=0.0)


def test_the_pace_of_an_answer_is_that_of_decoding() -> None:
    """What comes before the second token, such as a move of KV, is none of it."""

    class Slow:
        max_model_len = 64

        async def generate(self, messages: object, params: SamplingParams) -> AsyncIterator[object]:
            for count, pause_s in enumerate((0.0, 0.5, 0.01, 0.01), 1):
                await asyncio.sleep(pause_s)
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * count)])

    answer = asyncio.run(_answer(Slow(), 4))  # type: ignore[arg-type]
    assert answer.tokens == 4 and 0.01 <= answer.pace_s < 0.1 and answer.first_s < 0.1


def test_what_the_engine_adds() -> None:
    costs = ProfiledCosts(dataclasses.replace(MADE_UP, overhead=OVERHEAD))
    loop_s = costs.machine.loop_s
    assert loop_s is not None and (loop_s(decode(1)), loop_s(move_kv(1))) == ((0.01, 0.02), (0.05, 0.06))
    assert costs(decode(1, 1), D) == pytest.approx(1.0 + 0.3) and costs(prefill(0, 64), P) == pytest.approx(1.0)


def test_what_a_live_engine_shows() -> None:
    """Prefill took 0.75 longer than alone, decode at its pace 0.25, and 0.25 more where it followed nothing; on two
    cores of which a step keeps 1.75 busy, the loop and the clients beside it are why it was slow."""
    waited = [(decode(1, 1), D, 1.5, True), (decode(1, 1), D, 9.0, False), (prefill(0, 64), P, 1.75, True)]
    loop = dict.fromkeys(NAMES.values(), LoopTimes(0.2, 0.1))
    live = LiveTimes(loop, tuple(Waited(*each) for each in waited), pace_s=1.25, request_s=0.5, token_s=0.1)
    seen = seen_overhead(MADE_UP, live)
    assert (seen.loop, seen.token) == (loop, 0.1) and seen.more["prefill"] == pytest.approx(0.75)
    assert (seen.more["decode"], seen.fresh) == (pytest.approx(0.25, abs=1e-3), pytest.approx(0.25, abs=1e-3))
    shared = seen_overhead(dataclasses.replace(MADE_UP, chip=ChipSeen("cpu", "cpu", 3, 2)), live)
    assert shared.more["decode"] == pytest.approx(0.25 - 0.4 * (2.75 / 2 - 1), abs=1e-3)


def test_the_mean_of_profiles() -> None:
    other = dataclasses.replace(MADE_UP, overhead=OVERHEAD)
    kinds = [dataclasses.replace(kind, cores=dict.fromkeys(kind.cores, 2.0)) for kind in MADE_UP.kinds]
    kinds[2] = dataclasses.replace(
        kinds[2], decode=tuple(dataclasses.replace(point, seconds=3 * point.seconds) for point in kinds[2].decode)
    )
    third = dataclasses.replace(
        other,
        kinds=tuple(kinds),
        overhead=Overhead(OVERHEAD.loop, 0.8, {"decode": 0.6}),
        beside=(Beside("decode", "encode", 2.0),),
    )
    other = dataclasses.replace(other, beside=(Beside("decode", "encode", 1.0),))
    mean = mean_of([other, third])
    assert mean.overhead == Overhead(OVERHEAD.loop, pytest.approx(0.5), {"decode": pytest.approx(0.45)})
    assert mean.kinds[0].cores == {"encode": 1.75} and mean.kinds[0].encode == MADE_UP.kinds[0].encode
    assert [point.seconds for point in mean.kinds[2].decode] == pytest.approx([2.0, 4.0, 5.4, 6.0, 8.0])
    assert mean.beside == (Beside("decode", "encode", 1.5),)
    assert (mean.taken, mean.buckets, mean.preprocessing) == (other.taken, other.buckets, None)
    with pytest.raises(ValueError, match="different deployments have no mean: chip is not the same"):
        mean_of([MADE_UP, dataclasses.replace(MADE_UP, chip=ChipSeen("cpu", "cpu", 3, 2))])


def test_instances_like_one_another() -> None:
    costs = ProfiledCosts(MADE_UP)
    both = InstanceSpec("i5", "PD", kv_blocks=9, slots=9)
    assert costs(prefill(0, 64), both) == costs(prefill(0, 64), P)
    assert costs(encode(4), InstanceSpec("i6", "E", encode_width=4)) == 1.0, "one unit for each device"
    with pytest.raises(ValueError, match=r"mesh 2E1P1D has no instance that could decode like i7 .*2 wide"):
        costs(decode(1), InstanceSpec("i7", "D", tensor=2))


def test_profiles_of_others_are_refused() -> None:
    model = family_for(tiny_hf_config()).read_config(tiny_hf_config(), None)
    profile = dataclasses.replace(MADE_UP, model=ModelSeen("tiny", "internvl", digest(model)))
    ProfiledCosts(profile).check(model, "h200")
    ProfiledCosts(profile).check(model, "NVIDIA H200")
    with pytest.raises(ValueError, match="taken on NVIDIA H200, not on a100-80g"):
        ProfiledCosts(profile).check(model, "a100-80g")
    with pytest.raises(ValueError, match=r"the profile is of tiny .* not of this model"):
        ProfiledCosts(profile).check(preset("InternVL2-1B")[1], "h200")


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    MADE_UP.save(path)
    assert ProfiledCosts.load(path) == ProfiledCosts(MADE_UP)
    value = json.loads(path.read_text())
    for change, says in (
        ({"version": 99}, "of version 99, this epdjax reads version 4"),
        ({"format": "novel"}, "is not a profile"),
        ({"buckets": 3}, "damaged profile: buckets"),
    ):
        path.write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=says):
            Profile.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="it is not JSON"):
        Profile.load(path)
    with pytest.raises(ValueError, match=r"cannot read the profile .*b\.json: No such file"):
        Profile.load(tmp_path / "b.json")


def test_an_instance_is_timed() -> None:
    """A single one, with one step of each kind: MM tokens go from itself to itself, and KV nowhere."""
    config = tiny_hf_config(num_layers=1)
    config["vision_config"]["num_hidden_layers"] = 1
    family = family_for(config)
    model = family.read_config(config, None)
    buckets = Buckets((2,), ((1, 32),), (4,), (2,), (4,), (4,))
    settings = EngineConfig("tiny", "1EPD", buckets=buckets, max_model_len=64)
    profile = Profiler(family, model, settings, name="tiny", dtype="float32").take(repeats=1, least_s=0.0)
    (kind,) = profile.kinds
    assert (kind.roles, kind.tensor, kind.encode_width) == ("EPD", 1, 1) and set(kind.attention) == set("EPD")
    assert [(point.rows, point.size) for point in kind.encode] == [(2, 1)]
    assert [point.pairs for point in kind.prefill] == [32 * 33 / 2, 32 * 33 / 2 + 32 * 32]
    assert [(point.running, point.context) for point in kind.decode] == [(1, 1), (2, 2), (2, 2 * 64)]
    assert [point.count for point in kind.mm_moves] == [8] and not kind.kv_moves
    assert all(0 < point.seconds < 10 for point in (*kind.encode, *kind.prefill, *kind.decode, *kind.mm_moves))
    assert profile.preprocessing is None and profile.chip.device_kind == jax.devices()[0].device_kind
    instance = InstanceSpec("i0", "EPD", encode_width=1)
    assert ProfiledCosts(profile)(encode(1), instance) == kind.encode[0].seconds
    assert all(0 < loop.start < 1 and 0 < loop.end < 1 for loop in profile.overhead.loop.values())
    assert set(profile.overhead.loop) == set(NAMES.values()) and 0 <= profile.overhead.waking < 1
    assert set(kind.cores) == {"encode", "prefill", "decode"} and all(value > 0 for value in kind.cores.values())


@pytest.mark.slow
def test_a_profile_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a tiny model on virtual devices: every step and every move of every kind of instance."""
    folder = make_tiny_checkpoint(tmp_path / "tiny", num_layers=1)
    settings = "--max-model-len 128 --max-chunk 64 --max-seqs 2 --max-units 2 --buckets trimmed --repeats 1 --seconds 0"
    path = tmp_path / "made.json"
    assert main(["profile", "--model", str(folder), "--mesh", "2E1P1D", "-o", str(path), *settings.split()]) == 0
    assert "written to" in capsys.readouterr().out
    profile = Profile.load(path)
    assert profile.settings.mesh == "2E1P1D" and profile.settings.dtype == "float32"
    assert profile.taken.jax == jax.__version__ and profile.model.name == "tiny"
    assert profile.preprocessing is not None and profile.preprocessing.megapixel_s > 0
    e, p, d = profile.kinds
    assert (e.roles, e.encode_width, e.tensor) == ("E", 2, 1)
    assert [(point.rows, point.size) for point in e.encode] == [(n, 1) for n in profile.buckets.units]
    assert {point.pages for point in p.prefill} == set(profile.buckets.prefill_pages)
    assert {point.rows for point in d.decode} == set(profile.buckets.decode_rows)
    longest = max(profile.buckets.decode_pages) * 16
    assert {point.context // point.running for point in d.decode} == {1, longest}
    assert [point.count for point in d.kv_moves] == list(profile.buckets.move_blocks)
    assert [point.count for point in p.mm_moves] == [2 * n * 4 for n in profile.buckets.units]
    assert not (e.mm_moves or e.kv_moves or p.kv_moves or d.mm_moves)
    loop = profile.overhead.loop
    assert all(0 < each.start < 1 and 0 < each.end < 1 for each in loop.values()) and len(set(loop.values())) == 5
    assert profile.preprocessing.request_s >= 0 and profile.chip.cores > 0
    stages = ("encode", "prefill", "decode")
    assert {(each.stage, each.other) for each in profile.beside} == set(itertools.permutations(stages, 2))
    points = [*e.encode, *p.prefill, *p.mm_moves, *d.decode, *d.kv_moves]
    assert all(0 < point.seconds < 10 for point in points)
    costs = ProfiledCosts(profile)
    costs.check(config_of(folder), jax.devices()[0].device_kind)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "InternVL2-7B"], "did you mean 'InternVL2-"),
        (["--mesh", "1E1P"], "no instance for decode (D)"),
        (["--mesh", "900EPD"], "takes 900 devices"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--seconds", "-1"], "--seconds must be 0 or more"),
        (["-o", "no/such/folder/a.json"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("no profile: ") and says in error[0]
