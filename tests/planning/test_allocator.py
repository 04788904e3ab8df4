"""The search for the best deployment, on objectives whose optimum is known."""

import math

import pytest

from epdjax.mesh.spec import MeshSpec
from epdjax.planning.allocator import Allocator, Goodput, NothingFits
from epdjax.planning.metrics import Report, Spread, report
from epdjax.planning.space import PARTITIONS, Choice, Space

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


def attained(share: float) -> Report:
    blank = Spread.of([])
    return Report(1.0, 1, 1, 1, blank, blank, blank, blank, share)


@pytest.mark.parametrize("limit", [0.004, 0.3, 1.0, 7.7, 600.0])
def test_goodput_is_the_highest_rate_that_holds(limit: float) -> None:
    runs = []

    def simulate(choice: Choice, rate: float) -> Report:
        runs.append(rate)
        return attained(1.0 if rate <= limit else 0.5)

    found = Goodput(simulate)(Choice("1EPD"))
    assert limit / 1.06 < found <= limit
    assert len(runs) < 25


def test_a_goodput_of_nothing() -> None:
    assert Goodput(lambda choice, rate: report([]))(Choice("1EPD")) == 0.0
