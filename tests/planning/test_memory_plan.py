import dataclasses
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from epdjax.cli import main
from epdjax.demo import demo_model_path
from epdjax.mesh.spec import Group, MeshSpec
from epdjax.mesh.targets import target_devices, target_memory
from epdjax.models.presets import preset
from epdjax.models.random_checkpoint import write_random_internvl
from epdjax.planning.media_sizes import Media
from epdjax.planning.memory import CHIPS, HERE, Chip, PlannedModel, StepSizes, instance_memory
from epdjax.planning.memory_search import (
    CONTEXT,
    MEMORY,
    Picture,
    check_requests,
    limits,
    most,
    picture_of,
    plan_mesh,
)
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import build
from tests.models.families import minicpmv
from tests.planning.benchmarks.small_models import SMALL

PICTURE = Picture(units=3, tokens=4, size=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small")
    write_random_internvl(made, SMALL)
    return made


@pytest.fixture(scope="module")
def sizes(folder: Path) -> StepSizes:
    return StepSizes(PlannedModel.of(str(folder), "float32"), jax.devices()[:1])


SHAPES = {
    "line": lambda n: 1000 + 7 * n,
    "from nothing": lambda n: 3 * n,
    "square": lambda n: n * n,
    "padded": lambda n: 64 * -(-n // 64),
    "cliff": lambda n: 5 if n < 777 else math.inf,
    "constant": lambda n: 10,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("room", [0, 4, 1007, 20_000, 123_456])
@pytest.mark.parametrize("limit", [1, 5000])
@pytest.mark.parametrize("start", [1, 4000])
def test_the_most_is_found_in_few_tries(shape: str, room: int, limit: int, start: int) -> None:
    right = max((n for n in range(1, limit + 1) if SHAPES[shape](n) <= room), default=0)
    asked: list[int] = []
    assert most(lambda n: asked.append(n) or SHAPES[shape](n), room, limit, start) == right
    assert len(asked) == len(set(asked)) <= 22
    if shape in ("line", "from nothing"):
        assert len(asked) <= 6
        asked.clear()
        near = most(lambda n: asked.append(n) or SHAPES[shape](n), room, limit, start, precision=0.1)
        assert 0.9 * right - 1 <= near <= right and len(asked) <= 5


MODELS: dict[str, Callable[[Path], Path]] = {
    "random InternVL": lambda made: write_random_internvl(made, SMALL) or made,
    "tiny MiniCPM-V": lambda made: minicpmv.make(made) or made,
    "demo": lambda _: demo_model_path(),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_is_planned_is_what_a_deployment_holds(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Bytes of weights and pools of each kind of instance against those of live arrays, one by one to the byte, and
    against all that is alive on its device within 2 %."""
    folder = make(tmp_path)
    sizes = StepSizes(PlannedModel.of(str(folder), "float32"), jax.devices()[:1])
    config = EngineConfig(folder, "1E1PD", dtype="float32", max_model_len=256, max_seqs=4, kv_blocks=100, max_units=1)
    before = [_alive(device) for device in jax.devices()[:2]]
    deployment = build(config)
    for group, instance, old in zip(MeshSpec.parse("1E1PD").groups, deployment.instances.values(), before, strict=True):
        made = instance_memory(sizes, group, config, 1 << 32)
        assert made.roles == instance.roles
        weights = sum(leaf.nbytes for _, leaves in instance.parts.values() for leaf in leaves)
        assert made.weights == weights
        assert made.kv_pool == sum(pool.nbytes for pool in instance.pools)
        assert made.slots == sum(array.nbytes for array in jax.tree.leaves(instance.slots))
        assert made.mm_pool == (instance.mm_pool.nbytes if "P" in made.roles else 0)
        assert made.peak == made.kept + made.kv_pool == made.budget - made.left
        (device,) = instance.submesh.mesh.devices.flat
        assert _alive(device) - old == pytest.approx(weights + made.kv_pool + made.slots + made.mm_pool, rel=0.02)


def _alive(device: jax.Device) -> int:
    """Bytes of arrays on a device, each buffer once, without those that nobody has."""
    gc.collect()
    shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards if shard.device == device]
    return sum({data.unsafe_buffer_pointer(): data.nbytes for data in shards}.values())


def test_one_unit_more_would_not_fit(sizes: StepSizes) -> None:
    config = EngineConfig("small", max_model_len=512, max_seqs=2, max_units=2, max_chunk=64)
    budget = sizes.weights("E") + (1 << 20)
    encoder = instance_memory(sizes, Group(1, "E"), config, budget)
    alone = limits(sizes, encoder, config, PICTURE, 32)
    assert alone.pictures is alone.sequences is alone.kv_share is None and alone.units
    taken = [
        encoder.weights + sizes.encode(n, 1) + 3 * sizes.encoded(n, 1) + 2 * sizes.units(n, 1)
        for n in (alone.units, alone.units + 1)
    ]
    assert taken[0] <= budget < taken[1]


@pytest.mark.slow
def test_a_monolith_has_less_room(sizes: StepSizes) -> None:
    """All its pools and a sequence are beside the units; its KV pool may be all that the largest step leaves."""
    config = EngineConfig("small", max_model_len=512, max_seqs=2, max_units=2, max_chunk=64)
    budget = sizes.weights("EPD") + (6 << 20)
    alone = limits(sizes, instance_memory(sizes, Group(1, "E"), config, budget), config, PICTURE, 32)
    monolith = instance_memory(sizes, Group(1, "EPD"), config, budget)
    beside = limits(sizes, monolith, config, PICTURE, 32)
    assert alone.units and beside.units and 2 <= beside.units < alone.units
    assert beside.sequences and beside.sequences >= 2
    assert beside.kv_share is not None
    blocks = beside.kv_share * (budget - monolith.weights) / monolith.kv_block
    assert monolith.kv_blocks + 1 <= blocks <= (budget - monolith.kept) / monolith.kv_block < blocks + 1


@pytest.mark.slow
def test_context_or_memory_bounds_pictures(sizes: StepSizes) -> None:
    config = EngineConfig("small", max_model_len=128, max_seqs=1, max_units=1, max_chunk=64)
    group = Group(1, "P")
    roomy = instance_memory(sizes, group, config, 1 << 30)
    found = limits(sizes, roomy, config, PICTURE, 32)
    assert (found.pictures, found.pictures_bound) == ((4096 - 32) // 12, CONTEXT)
    tight = instance_memory(sizes, group, config, roomy.kept + 24 * roomy.kv_block)
    found = limits(sizes, tight, config, PICTURE, 32)
    assert found.pictures_bound == MEMORY and 0 < found.pictures < 338


def test_what_does_not_fit_says_by_how_much(folder: Path) -> None:
    model, mesh = PlannedModel.of(str(folder)), MeshSpec.parse("2E1PD")
    toy = Chip("toy", 200_000, lambda count: jax.devices()[:count])
    config = EngineConfig("small", max_model_len=128, max_seqs=1, max_units=1, max_chunk=64)
    with pytest.raises(ValueError, match=r"does not fit as 1PD into toy: a sequence of full length takes 8 KV blocks"):
        plan_mesh(model, mesh, dataclasses.replace(toy, memory=350_000), config, PICTURE, 32)
    with pytest.raises(
        ValueError, match=r"does not fit as 2E into toy: .* more than a device may use; lower --max-units"
    ):
        plan_mesh(model, mesh, dataclasses.replace(toy, memory=1000), config, PICTURE, 32)


def test_requests_beyond_limits_are_refused(folder: Path) -> None:
    model = PlannedModel.of(str(folder))
    config = EngineConfig("small", max_model_len=128, mm_blocks=8)
    check_requests(model, config, PICTURE, 2, 32)
    with pytest.raises(
        ValueError, match=r"140 tokens of context, 12 more than the 128 .* raise --max-model-len to 140"
    ):
        check_requests(model, config, PICTURE, 9, 32)
    with pytest.raises(ValueError, match=r"take 9 MM blocks; raise --mm-blocks from 8"):
        check_requests(model, config, PICTURE, 3, 32)


def test_pictures_are_as_many_units_as_the_model_says() -> None:
    """The paper's tiles of the paper's pictures; flags win."""
    tiles = {"MiniCPM-V-2.6": (1, 3, 10), "InternVL2-8B": (13, 3, 13), "InternVL2-26B": (13, 3, 13)}
    for name, counts in tiles.items():
        _, model = preset(name)
        for size, count in zip(((313, 234), (787, 444), (4032, 3024)), counts, strict=True):
            picture = picture_of(model, Media("image", *size))
            assert picture == Picture(count, 64 if "MiniCPM" in name else 256, 1152 if "MiniCPM" in name else 1)
    assert picture_of(model, Media(), units=4) == Picture(4, 256, 1)
    _, tiled = preset("Gemma-3-4B")
    assert picture_of(tiled, Media(), units=2) == Picture(2, 256, 1)
    _, native = preset("Qwen2.5-VL-7B")
    with pytest.raises(ValueError, match=r"say how many units"):
        picture_of(native, Media())
    given = picture_of(native, Media(), units=1, tokens=1000)
    assert given.units == 1 and native.unit_tokens(given.size) >= 1000


def test_chips_have_a_size() -> None:
    assert all(target_memory(chip) > 15 << 30 for chip in CHIPS if chip != HERE)
    here = Chip.of(HERE, MeshSpec.parse("1EPD"))
    assert here.memory > 1 << 28 and here.devices(1) == jax.devices()[:1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["InternVL-8B", "--mesh", "1EPD"], "did you mean 'InternVL3-8B'?"),
        (["InternVL2-8B", "--mesh", "1EPD", "--chip", "a100"], "did you mean 'a100-80g'?"),
        (["InternVL2-8B", "--mesh", "1E1P"], "no instance for decode (D)"),
        (["InternVL2-8B", "InternVL2-1B", "--mesh", "1EPD"], "takes one model, not 2"),
        (["InternVL2-8B", "--mesh", "1EPD", "--resolution", "4K"], "such as 4032x3024, not '4K'"),
        (["InternVL2-8B", "--mesh", "1EPD", "--max-chunk", "100"], "multiple of block_size"),
        (["InternVL2-8B", "--mesh", "1EPD", "--pictures", "3"], "1824 more than the 8192"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan-memory", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("no plan: ") and says in line


@pytest.mark.slow
def test_the_command_prints_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["plan-memory", str(folder), "--chip", "here", "--mesh", "1EPD", "--max-seqs", "1", "--max-units", "1"]
    limits_given = ["--max-model-len", "64", "--max-chunk", "64", "--resolution", "28x28", "--units-per-picture", "1"]
    assert main([*common, *limits_given, "--memory-share", "0.0001", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    [instance] = said["instances"]
    assert instance["roles"] == "EPD" and instance["peak"] + instance["left"] == instance["budget"]
    assert instance["units"] >= 1 and instance["sequences"] >= 1


@pytest.mark.deviceless
def test_a_published_model_on_a_chip_that_is_not_here() -> None:
    """A whole device for an encoder: the largest step that was found fits, and one a little larger would not."""
    model, chip, config = PlannedModel.of("internvl2-1b"), "a100-80g", EngineConfig("planned", max_units=2)
    there, budget = StepSizes(model, target_devices(chip, 1)), int(target_memory(chip) * config.memory_share)
    encoder = instance_memory(there, Group(1, "E"), config, budget)
    found = limits(there, encoder, config, picture_of(model.config, Media()), 32)
    assert found.units and found.units > 1000 and len(there.compiled) < 10
    assert there.encode(found.units, 1) + encoder.weights < budget
    assert there.encode(2 * found.units, 1) + encoder.weights > budget
