"""The search for the best deployment, on objectives whose optimum is known."""

import math
from functools import partial
from typing import Any

import pytest

from epdjax.mesh.chips import chip
from epdjax.mesh.spec import MeshSpec
from epdjax.models.presets import preset
from epdjax.planning.allocator import Allocator, Goodput, NothingFits
from epdjax.planning.costs import ConstantCosts, HostCosts, Roofline
from epdjax.planning.metrics import SLO
from epdjax.planning.simulator import Seconds, Sizes
from epdjax.planning.space import PARTITIONS, Choice, Space
from epdjax.planning.trial_runs import TrialRuns
from epdjax.planning.workloads import Kind, Workload, always, workload
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import scheduling_for

FAMILY, MODEL = preset("MiniCPM-V-2.6")
ROOM = Sizes(kv_blocks=2048, mm_blocks=512, slots=16)
EVERYTHING = Space(max_units=(1, 2, 4, 8), max_chunk=(256, 512, 1024, 2048), max_seqs=(8, 16, 64))


def test_a_space_has_every_mesh_once() -> None:
    meshes = Space(devices=(8,)).meshes()
    assert len(meshes) == len(set(meshes)) == 1 + 3 * 7 + 21
    assert {"8EPD", "5E2P1D", "7EP1D", "1E7PD", "3ED5P"} <= set(meshes)
    assert {MeshSpec.parse(mesh).devices for mesh in meshes} == {8}
    wide = Space(devices=(5,), tensor=(1, 2), partitions=(("E", "PD"), ("E", "P", "D"))).meshes()
    assert {"1E4PD", "1E2PDx2", "3E1PDx2", "1E2P2D", "1E1Px2,1Dx2"} <= set(wide)
    assert not any(MeshSpec.parse(mesh).devices != 5 for mesh in wide)
    assert Space(devices=(1,)).meshes() == ["1EPD"]
    assert len(list(EVERYTHING)) == len(EVERYTHING) == 43 * 48
    assert set(PARTITIONS) == set(Space().partitions)


def test_a_space_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="max_units is empty"):
        Space(max_units=())
    with pytest.raises(ValueError, match="devices must be at least 1"):
        Space(devices=(0,))


def test_a_choice_says_how_to_serve_it() -> None:
    choice = Choice("5E2P1D", 4, 1024, 32, "sjf", "round-robin", irp=False)
    assert choice.flags == (
        "--mesh 5E2P1D --max-units 4 --max-chunk 1024 --max-seqs 32 --order sjf --assignment round-robin --no-irp"
    )


def balanced(choice: Choice) -> float:
    """What the slowest stage lets through: encoders and large chunks are good, too many sequences are not."""
    counts = dict.fromkeys("EPD", 0.0)
    for group in MeshSpec.parse(choice.mesh).groups:
        for role in group.roles:
            counts[role] += group.count / len(group.roles)
    speed = min(counts["E"] * choice.max_units**0.3 / 5, counts["P"] * choice.max_chunk**0.2 / 8, counts["D"])
    return speed / (1 + 0.1 * abs(math.log2(choice.max_seqs / 16)))


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_optimum_of_an_enumerated_space(seed: int) -> None:
    """With a tenth of the evaluations."""
    best = Allocator(balanced, lambda _: None).exhaustive(EVERYTHING).best
    allocator = Allocator(balanced, lambda _: None)
    plan = allocator.search(EVERYTHING, len(EVERYTHING) // 10, seed=seed)
    assert len(allocator.scores) <= len(EVERYTHING) // 10
    assert plan.best.value == pytest.approx(best.value, rel=1e-9)


def test_a_search_of_a_small_space_ends() -> None:
    space = Space(devices=(2,), max_units=(8,), max_chunk=(512,), max_seqs=(16,))
    plan = Allocator(balanced, lambda _: None).search(space, 100)
    assert {score.choice.mesh for score in plan.scores} <= set(space.meshes())
    assert plan.best.value == max(balanced(choice) for choice in space)


def test_what_does_not_fit_is_never_proposed() -> None:
    def fits(choice: Choice) -> None:
        if "EPD" in choice.mesh or choice.max_seqs > 16:
            raise ValueError("too large")

    space = Space(devices=(2, 3), max_units=(8,), max_chunk=(512,))
    for plan in (Allocator(balanced, fits).exhaustive(space), Allocator(balanced, fits).search(space, 10)):
        assert "EPD" not in plan.best.choice.mesh and plan.best.choice.max_seqs == 16
        assert {score.why for score in plan.scores if score.value == -math.inf} == {"too large"}
    with pytest.raises(NothingFits, match="too large"):
        Allocator(balanced, fits).exhaustive(Space(devices=(1,)))


def test_devices_have_their_price() -> None:
    space = Space(devices=(1, 2, 4, 8), max_units=(8,), max_chunk=(512,), max_seqs=(16,))
    devices = [Allocator(balanced, lambda _: None, beta).exhaustive(space).best.choice.devices for beta in (0.0, 10.0)]
    assert devices == [8, 1]


def test_runner_up_and_sensitivity() -> None:
    plan = Allocator(balanced, lambda _: None).exhaustive(EVERYTHING)
    assert plan.runner_up is not None and plan.runner_up.choice.mesh != plan.best.choice.mesh
    assert plan.runner_up.value <= plan.best.value
    found = plan.sensitivity()
    assert found["max_seqs"] == pytest.approx(1 - 1 / 1.1, rel=1e-6)
    assert set(found) == {"mesh", "max_units", "max_chunk", "max_seqs"}


@pytest.mark.parametrize("limit", [0.004, 0.3, 1.0, 7.7, 600.0])
def test_goodput_is_the_highest_rate_that_holds(limit: float) -> None:
    runs: list[float] = []

    def holds(choice: Choice, rate: float) -> bool:
        runs.append(rate)
        return rate <= limit

    goodput = Goodput(holds)
    found = goodput(Choice("1EPD"))
    assert limit / 1.06 < found <= limit
    assert len(runs) < 25
    runs.clear()
    assert goodput(Choice("1EPD")) == found, "wherever the search begins"
    assert len(runs) <= 8


def test_a_goodput_of_nothing() -> None:
    assert Goodput(lambda choice, rate: False)(Choice("1EPD")) == 0.0


def trial_runs(costs: Seconds, load: str | Workload, slo: SLO, room: Sizes = ROOM, **settings: Any) -> TrialRuns:
    """Of MiniCPM-V 2.6, with costs and room that are the same for all deployments.

    Args:
        settings: of `TrialRuns`, and those of `EngineConfig` that begin with ``max_``.
    """
    limits = {name: settings.pop(name) for name in list(settings) if name.startswith("max_")}
    config = scheduling_for(EngineConfig("planned", max_model_len=4096, **limits), MODEL)
    asked = workload(load) if isinstance(load, str) else load
    return TrialRuns(MODEL, asked, slo, lambda _: costs, lambda _: config, lambda _: room.spec, **settings)


@pytest.mark.parametrize("mesh", ["3EPD", "1E1P1D"])
def test_a_run_may_end_when_its_outcome_is_known(mesh: str) -> None:
    costs = ConstantCosts(encode_unit_s=(0.03,), prefill_token_s=0.0002, decode_s=0.01)
    runs = trial_runs(costs, "pictures-1", SLO(1.0, 0.05), count=50)
    choice = Choice(mesh)
    found = [(runs.holds(choice, rate, 0.9), runs(choice, rate).attainment >= 0.9) for rate in (0.5, 1, 2, 3, 4, 8, 16)]
    assert all(held == attained for held, attained in found)
    assert {held for held, _ in found} == {True, False}


def test_the_host_may_be_what_is_slow() -> None:
    costs = ConstantCosts(encode_unit_s=(0.01,))
    found = []
    for host in (None, HostCosts(megapixel_s=0.1, workers=2)):
        runs = trial_runs(costs, "pictures-1", SLO(5.0, 0.05), host=host)
        found.append(Goodput(partial(runs.holds, attainment=0.9))(Choice("4EPD")))
    most = 2 / (0.1 * 4032 * 3024 / 1e6)  # pictures per second
    assert found[0] > 5 * most and found[1] == pytest.approx(most, rel=0.4)


def test_loose_slos_do_not_hide_a_queue_that_grows() -> None:
    """A run of a few thousand requests is over before the last of them waits for a minute."""
    runs = trial_runs(ConstantCosts(encode_unit_s=(0.01,)), "pictures-1", SLO(60.0, 1.0))
    most = 4 / (10 * 0.01)  # pictures of ten slices per second
    assert runs.holds(Choice("4EPD"), 0.8 * most, 0.9) and not runs.holds(Choice("4EPD"), 1.7 * most, 0.9)


@pytest.mark.parametrize("ttft_s", [0.5, 2.0])
def test_long_answers_pile_up(ttft_s: float) -> None:
    """As many are decoded at a time as there is room for; the run is not over before they are that many."""
    costs, room = ConstantCosts(encode_unit_s=(0.01,), decode_s=0.01), Sizes(4096, 512, slots=16)
    answers = Workload((Kind(output=always(200)),))
    runs = trial_runs(costs, answers, SLO(ttft_s, 0.05), room, max_seqs=16, count=20)
    most = 16 / (200 * 0.01)  # answers per second
    assert Goodput(partial(runs.holds, attainment=0.9))(Choice("1EPD")) == pytest.approx(most, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slo", "apart", "ahead"),
    [("chat", SLO(1.0, 0.05), False, 1.2), ("pictures-4", SLO(2.6, 0.04), True, 1.5)],
    ids=["few-pictures", "the-papers"],
)
def test_stages_are_apart_where_that_pays_and_only_there(name: str, slo: SLO, apart: bool, ahead: float) -> None:
    """On three A100s as their roofline has them: the best with stages apart beside monoliths."""
    buckets = scheduling_for(EngineConfig("planned", max_model_len=4096, max_chunk=1024, max_seqs=64), MODEL).buckets
    roofline = Roofline.of(FAMILY, MODEL, chip("a100-80g"), dtype="float16", buckets=buckets)
    runs = trial_runs(roofline, name, slo, Sizes(16384, 2048, slots=64), max_chunk=1024, max_seqs=64, count=50)
    space = Space(devices=(3,), max_units=(8,), max_chunk=(1024,), max_seqs=(64,))
    plan = Allocator(Goodput(partial(runs.holds, attainment=0.9)), lambda _: None).exhaustive(space)
    assert (plan.best.choice.mesh != "3EPD") == apart
    assert plan.best.value > ahead * max(score.value for score in plan.scores if (score.choice.mesh != "3EPD") != apart)
