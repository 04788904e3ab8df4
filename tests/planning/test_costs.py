"""Cost models that need no measuring: they count what XLA counts, and agree with what is known otherwise."""

import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from epdjax.mesh import targets
from epdjax.mesh.chips import CHIPS, chip
from epdjax.models.presets import parameter_count, preset
from epdjax.models.registry import family_for
from epdjax.planning.costs import ConstantCosts, Efficiency, HostCosts, Links, Roofline
from epdjax.planning.costs.counting import LanguageCount, encode_count
from epdjax.planning.costs.ladder import between, line, rung
from epdjax.planning.paper import role_switching
from epdjax.planning.paper.stack import SLICES, PaperStack
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.footprint import shaped_instance
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.memory import block_bytes
from epdjax.serving.programs import jobs_of
from epdjax.serving.work import Chunk, Decode, Encode, KVPart, MoveKV, MoveMM, Prefill, Sequence, Unit, UnitMove, Work
from tests.models.tiny import tiny_hf_config

BUCKETS = Buckets(
    units=(2,),
    prefill=((1, 64), (2, 128)),
    prefill_pages=(16,),
    decode_rows=(4,),
    decode_pages=(16,),
    move_blocks=(4,),
)


def hf_config() -> dict[str, Any]:
    """Small, but wide enough that products are nearly all there is to do."""
    config = tiny_hf_config("qwen2", tied=False)
    wide = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2}
    config["vision_config"] |= wide | {"intermediate_size": 2048, "image_size": [56, 56], "patch_size": [7, 7]}
    config["text_config"] |= wide | {"num_key_value_heads": 2, "intermediate_size": 1536, "vocab_size": 2048}
    return config


@pytest.fixture(scope="module")
def shaped() -> Instance:
    """An instance of that model, its parameters shapes."""
    family = family_for(hf_config())
    model = family.read_config(hf_config(), None)
    config = EngineConfig(model="small", buckets=BUCKETS, max_model_len=256, attention="reference")
    return shaped_instance(family, model, "EPD", jax.devices()[:1], config, jnp.float32)


@pytest.mark.parametrize("step", ["encode", "prefill", "decode"])
def test_operations_are_those_that_xla_counts(shaped: Instance, step: str) -> None:
    family, text = family_for(hf_config()), shaped.model.text
    count, unit = LanguageCount.of(text, "float32"), encode_count(family, shaped.model, 1, "float32")
    for job in jobs_of(shaped, [shaped]):
        if job.key[0] != step:
            continue
        shape = job.key[1]
        if step == "encode":
            expected = shape[0] * unit.flops
        else:
            rows, tokens = shape[0], shape[0] * (shape[1] if step == "prefill" else 1)
            pairs = text.num_layers * tokens * shape[-1] * 16  # the reference scores every key of the pages
            expected = tokens * count.token_flops + rows * count.row_flops + pairs * count.pair_flops
        counted = job.lower().compile().cost_analysis()["flops"]
        assert 1 <= counted / expected < 1.05, job.key


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_all_that_the_model_has(tied: bool) -> None:
    config = hf_config() | {"tie_word_embeddings": tied}
    family = family_for(config)
    model = family.read_config(config, None)
    assert model.text.tie_embeddings == tied
    parameters = parameter_count(family, model)
    assert encode_count(family, model, 1).weight_bytes == 2 * parameters["encoder"]
    unread = 0 if tied else model.text.vocab_size * model.text.hidden_size
    read = LanguageCount.of(model.text, "bfloat16").weight_bytes
    assert read == pytest.approx(2 * (parameters["language_model"] - unread), rel=1e-3)  # biases are not counted


def test_units_of_all_sizes_are_counted() -> None:
    """Attention makes larger units cost more than in proportion, and the rest of them in proportion."""
    family, model = preset("MiniCPM-V-2.6")
    small, large = (encode_count(family, model, size) for size in model.unit_sizes(8192))
    sizes = model.unit_sizes(8192)
    assert sizes[1] / sizes[0] * 0.9 < large.flops / small.flops < (sizes[1] / sizes[0]) ** 2


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 9), (3, 4), (6, 9), (40, 7)])
def test_windows_bound_what_is_seen(start: int, length: int) -> None:
    text = family_for(hf_config()).read_config(hf_config(), None).text
    count = LanguageCount.of(dataclasses.replace(text, windows=(8, None)), "float32")
    seen = [(min(i + 1, 8), i + 1) for i in range(start, start + length)]
    assert count.pairs(start, length) == sum(map(sum, seen))
    assert count.keys([start + length]) == sum(seen[-1])
    plain = LanguageCount.of(text, "float32")
    assert plain.pairs(start, length) == 2 * sum(whole for _, whole in seen)


INSTANCE = InstanceSpec("i0", "EPD", kv_blocks=100, mm_blocks=10, slots=64, encode_width=1)


def encode(units: int) -> Encode:
    return Encode(0, "i0", tuple(Unit("r", i) for i in range(units)))


def decode(*positions: int) -> Decode:
    return Decode(0, "i0", tuple(Sequence(str(i), i, at, (1,) * (at // 16 + 1)) for i, at in enumerate(positions)))


def prefill(*chunks: tuple[int, int]) -> Prefill:
    return Prefill(0, "i0", tuple(Chunk("r", start, length, False, 0, ()) for start, length in chunks))


def move_kv(*blocks: int, source: str = "i1") -> MoveKV:
    some = [tuple(range(n)) for n in blocks]
    return MoveKV(0, source, "i0", tuple(KVPart("r", each, each, False, 0) for each in some))


@pytest.fixture(scope="module")
def roofline() -> Roofline:
    family, model = preset("InternVL3-8B")
    return Roofline.of(family, model, chip("h100-80g"))


def test_a_decode_step_reads_its_weights(roofline: Roofline) -> None:
    """What anybody can work out: 7 billion parameters in bfloat16 at three quarters of 3352 GB/s."""
    assert roofline(decode(0), INSTANCE) == pytest.approx(14.14e9 / (0.75 * 3352e9) + 3e-4, rel=0.01)
    longer = roofline(decode(*[2000] * 32), INSTANCE) - roofline(decode(*[1000] * 32), INSTANCE)
    kv_bytes = 2 * 4 * 128 * 28 * 2
    assert longer == pytest.approx(32 * 1000 * kv_bytes / (0.75 * 3352e9), rel=1e-6)


def test_a_prefill_step_computes(roofline: Roofline) -> None:
    """Two operations for each of 6.5 billion weights and token, at 0.6 of 989 TFLOP/s."""
    took = roofline(prefill((0, 512)), INSTANCE)
    assert took == pytest.approx(2 * 6.53e9 * 512 / (0.6 * 989e12) + 3e-4, rel=0.02)
    assert roofline(prefill((4096, 512)), INSTANCE) > took
    assert roofline(prefill((0, 256), (0, 256)), INSTANCE) == pytest.approx(took, rel=0.01)


def test_devices_share(roofline: Roofline) -> None:
    wide = dataclasses.replace(INSTANCE, tensor=2)
    for work in (prefill((0, 512)), decode(*[500] * 16)):
        one, two = roofline(work, INSTANCE), roofline(work, wide)
        assert one / 2 < two < one * 0.75
    spread = dataclasses.replace(INSTANCE, encode_width=4)
    assert roofline(encode(5), spread) == roofline(encode(8), spread) == roofline(encode(2), INSTANCE)
    assert roofline(encode(8), spread) < roofline(encode(8), INSTANCE) / 3


def test_padding_is_paid_for() -> None:
    family, model = preset("InternVL2-1B")
    exact, padded = (Roofline.of(family, model, chip("a100-80g"), buckets=some) for some in (None, BUCKETS))
    for short, full in (
        (prefill((0, 40)), prefill((0, 64))),
        (decode(9), decode(9, 0, 0, 0)),
        (encode(1), encode(2)),
    ):
        assert padded(short, INSTANCE) == pytest.approx(padded(full, INSTANCE), rel=1e-3)
        assert padded(short, INSTANCE) > exact(short, INSTANCE)


def test_efficiencies_are_shares() -> None:
    with pytest.raises(ValueError, match=r"efficiency matrix must be in \(0, 1\], not 60"):
        Efficiency(matrix=60)
    with pytest.raises(ValueError, match="launch_s must not be negative"):
        Efficiency(launch_s=-1)


def test_chips_are_those_that_are_compiled_for() -> None:
    for name, known in CHIPS.items():
        assert targets.target_memory(name) > 0
        kind: Any = types.SimpleNamespace(device_kind=known.device_kind + " 80GB")
        if known.name != "a100-80g":  # its memory has two speeds, and its table goes by the whole name
            assert targets.peak_gbytes(kind) == known.gbytes
        assert targets.peak_tflops(kind) == known.tflops
    with pytest.raises(ValueError, match=r"unknown chip 'h100'; did you mean 'h100-80g'\?"):
        chip("h100")


def test_constants_say_what_the_papers_stack_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every work of the paper's experiment on role switching costs the same as constants say."""
    stack, kinds = PaperStack.calibrated(), set()
    constants = ConstantCosts(
        encode_unit_s=(stack.slice_s * SLICES,),
        prefill_s=stack.prompt_s,
        prefill_token_s=stack.token_s,
        decode_s=stack.decode_s,
        decode_row_s=stack.row_s,
        move_s=stack.move_s,
    )
    of_stack = PaperStack.__call__

    def both(self: PaperStack, work: Work, instance: InstanceSpec) -> float:
        kinds.add(type(work))
        seconds = of_stack(self, work, instance)
        assert constants(work, instance) == pytest.approx(seconds, rel=1e-12)
        return seconds

    monkeypatch.setattr(PaperStack, "__call__", both)
    role_switching.run(role_switching.AS_PAPER, switching=False)
    assert kinds == {Encode, Prefill, Decode, MoveMM, MoveKV}


def test_constants() -> None:
    links = Links(bytes_per_s=1e3, latency_s=0.5, mm_block_bytes=100, kv_block_bytes=10)
    costs = ConstantCosts(
        (0.1, 0.3), encode_s=1.0, prefill_s=2.0, decode_s=3.0, decode_token_s=0.01, move_s=0.25, links=links
    )
    spread = dataclasses.replace(INSTANCE, encode_width=2, tensor=2)
    assert costs(encode(3), spread) == pytest.approx(1.2)
    assert costs(Encode(0, "i0", (Unit("r", 0, bucket=5),)), spread) == pytest.approx(1.3)
    assert costs(decode(9, 19), INSTANCE) == pytest.approx(3.3)
    assert costs(prefill((0, 5)), spread) == pytest.approx(2 / 1.8)
    assert costs(move_kv(3, 4), spread) == pytest.approx(0.25 + 0.5 + 70 / 2 / 1e3)
    assert costs(move_kv(3, source="i0"), INSTANCE) == pytest.approx(0.75)
    move = MoveMM(0, "i1", "i0", 0, (UnitMove(Unit("r", 0), 0, (1, 2)),))
    assert costs(move, spread) == pytest.approx(0.75 + 0.2)
    with pytest.raises(ValueError, match="decode_s must not be negative, not -1"):
        ConstantCosts((0.1,), decode_s=-1)
    with pytest.raises(ValueError, match="encode_unit_s is empty"):
        ConstantCosts(())


def test_links_know_what_a_block_is(shaped: Instance) -> None:
    links = Links.of(shaped.model, bytes_per_s=1e9, latency_s=0.0, dtype="float32")
    assert links.kv_block_bytes == block_bytes(shaped)
    assert links.bytes(move_kv(2, 1)) == 3 * block_bytes(shaped)
    assert links.mm_block_bytes == shaped.mm_block_size * shaped.model.mm_width * 4
    with pytest.raises(ValueError, match="must be greater than 0"):
        dataclasses.replace(links, bytes_per_s=0)


def test_what_pictures_take_on_the_host() -> None:
    host = HostCosts(megapixel_s=0.02, picture_s=0.01, workers=2)
    assert host.preprocess_s(1e6, 2e6) == pytest.approx(0.08)
    assert host.preprocess_s() == 0
    with pytest.raises(ValueError, match="workers must be at least 1"):
        HostCosts(0.1, workers=0)


def test_between_points() -> None:
    assert [rung((2, 4), n) for n in (1, 2, 3, 9)] == [2, 2, 4, 9]
    points = [(10.0, 1.0), (20.0, 3.0), (40.0, 4.0)]
    assert [between(points, x) for x in (5, 10, 15, 30, 40, 80)] == [1, 1, 2, 3.5, 4, 8]
    assert line([(1, 3), (3, 7), (2, 99)]) == (1, 2)
    assert line([(1, 5), (3, 3)]) == (4, 0)  # it never gets shorter
    assert line([(5, 2), (5, 2)]) == (2, 0)
    fixed, slope = line([(1, 1), (3, 9)])
    assert fixed == 0 and slope == 5 / 2
    assert math.isfinite(between([(4.0, 1.0)], 1e9))
