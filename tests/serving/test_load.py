"""Load in seconds of service: queues, sharing, rates over uneven samples."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.serving.clearing import Place, clear_times
from epdjax.serving.load import ROLES, Estimate, InstanceLoad, LoadEstimator, LoadSample, Smoothed


def observe(*instances: InstanceLoad, between_s: dict[str, float] | None = None) -> Estimate:
    return LoadEstimator().observe(LoadSample(0.0, instances, between_s or {}))


def test_all_queues_of_a_stage_count() -> None:
    """Five devices that encode together need 2 s for what they have: 10 device-seconds; 5 more have no encoder yet."""
    estimate = observe(
        InstanceLoad("E", "E", 5, {"E": 2.0}),
        InstanceLoad("P0", "P", 1, {"P": 1.0}),
        InstanceLoad("P1", "P", 1, {"P": 3.0}),
        InstanceLoad("D0", "D", 1, {"D": 4.0}, kv_held=0.5),
        between_s={"E": 5.0, "D": 6.0},
    )
    stages = estimate.stages
    assert (stages["E"].instances, stages["E"].devices, stages["E"].backlog_s, stages["E"].wait_s) == (1, 5, 15.0, 3.0)
    assert (stages["P"].instances, stages["P"].devices, stages["P"].backlog_s, stages["P"].wait_s) == (2, 2, 4.0, 2.0)
    assert (stages["D"].backlog_s, stages["D"].wait_s, stages["D"].kv_pressure) == (10.0, 10.0, 0.5)


def test_what_is_left_on_an_instance_that_is_being_switched_counts_for_its_stage() -> None:
    stages = observe(InstanceLoad("P0", "P", 1, {"P": 1.0}), InstanceLoad("P1", "", 1, {"P": 3.0})).stages
    assert (stages["P"].instances, stages["P"].wait_s) == (1, 4.0)


def test_kv_pressure_is_a_mean_over_devices() -> None:
    stages = observe(InstanceLoad("D0", "D", 3, kv_held=1.0), InstanceLoad("PD", "PD", 1, kv_held=0.2)).stages
    assert stages["D"].kv_pressure == pytest.approx(0.8)
    assert stages["P"].kv_pressure == pytest.approx(0.2)


def test_shared_devices() -> None:
    """Stages that share an instance end together; where one has devices of its own, they are left to it."""
    assert clear_times({"E": 6, "P": 3, "D": 1}, [Place("EPD", 2)]) == {"E": 5, "P": 5, "D": 5}
    assert clear_times({"P": 10, "D": 10}, [Place("P", 1), Place("PD", 1)]) == {"P": 10, "D": 10}
    assert clear_times({"P": 2, "D": 10}, [Place("P", 1), Place("PD", 1)]) == {"P": 2, "D": 10}
    assert clear_times({"P": 30, "D": 10}, [Place("P", 1), Place("PD", 1)]) == {"P": 20, "D": 20}
    assert clear_times({"E": 0, "P": 3}, [Place("E", 1)]) == {"E": 0, "P": float("inf")}


def test_devices_that_come_later() -> None:
    """10 device-seconds: one device does 2 in the 2 s until another comes, and both need 4 s for the rest."""
    assert clear_times({"D": 10.0}, [Place("D", 1), Place("D", 1, begins=2.0)]) == {"D": 6.0}
    assert clear_times({"D": 1.0}, [Place("D", 1), Place("D", 1, begins=2.0)]) == {"D": 1.0}
    assert clear_times({"D": 3.0}, [Place("D", 1, begins=2.0)]) == {"D": 5.0}


amounts = st.floats(0.01, 100)
works = st.fixed_dictionaries({role: st.just(0.0) | amounts for role in ROLES})
places = st.lists(
    st.builds(
        Place,
        roles=st.sampled_from(["E", "P", "D", "EP", "ED", "PD", "EPD"]),
        devices=st.integers(1, 8),
        begins=st.just(0.0) | st.floats(0, 10),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(works, places)
def test_the_slowest_stage_is_as_fast_as_can_be(work: dict[str, float], places: list[Place]) -> None:
    """No stages, taken together, have more to do until the end than all devices that may do any of it can do; and
    some have exactly as much."""
    end = max(clear_times(work, places).values())
    if end == float("inf"):
        assert any(work[role] > 0 and not any(role in p.roles for p in places) for role in ROLES)
        return
    used = []
    for count in (1, 2, 3):
        for group in itertools.combinations(ROLES, count):
            able = [p for p in places if set(p.roles) & set(group)]
            can = sum(p.devices * max(0.0, end - p.begins) for p in able)
            has = sum(work[role] for role in group)
            assert has <= can * (1 + 1e-9) + 1e-9
            used.append(has >= can * (1 - 1e-9) - 1e-9)
    assert any(used)


@settings(deadline=None)
@given(works, places)
def test_less_work_never_takes_longer(work: dict[str, float], places: list[Place]) -> None:
    end = max(clear_times(work, places).values())
    assert max(clear_times({role: each / 2 for role, each in work.items()}, places).values()) <= end


gaps = st.lists(st.floats(0.01, 30), min_size=1, max_size=20)


@given(gaps, st.floats(0, 8))
def test_a_steady_rate_is_found_whatever_the_spacing(gaps: list[float], rate: float) -> None:
    estimator = LoadEstimator(half_life_s=5.0)
    estimator.observe(LoadSample(0.0, ()))
    for now in itertools.accumulate(gaps):
        stage = estimator.observe(LoadSample(now, (), arrived_s={"E": rate * now})).stages["E"]
        assert stage.arrival_rate == pytest.approx(rate)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_a_mean_does_not_depend_on_how_often_it_was_looked_at(parts: list[tuple[float, float, int]]) -> None:
    """A part of so many seconds with one value, in one observation or in several."""
    seldom, often = Smoothed(3.0), Smoothed(3.0)
    for lasts_s, value, times in parts:
        seldom.observe(value, lasts_s)
        for _ in range(times):
            often.observe(value, lasts_s / times)
    assert seldom.value == pytest.approx(often.value)


def test_half_lives() -> None:
    """A rate of 4 for ever, then none for a half-life: 2."""
    mean = Smoothed(5.0)
    mean.observe(4.0, 1000.0)
    mean.observe(0.0, 5.0)
    assert mean.value == pytest.approx(2.0)
    mean.observe(0.0, 5.0)
    assert mean.value == pytest.approx(1.0)


def test_rates_and_utilisation() -> None:
    """In 2 s of work for 6 device-seconds came and 3 were done; the group of two was busy for 1 s, the other for 2."""
    estimator = LoadEstimator()
    for now, busy in ((10.0, (7.0, 0.0)), (12.0, (8.0, 2.0))):
        instances = (InstanceLoad("E", "E", 2, busy_s=busy[0]), InstanceLoad("EPD", "EPD", 1, busy_s=busy[1]))
        grown = now - 10
        estimate = estimator.observe(LoadSample(now, instances, {}, {"E": 3 * grown}, {"E": 1.5 * grown}))
    encode, prefill = estimate.stages["E"], estimate.stages["P"]
    assert (encode.arrival_rate, encode.service_rate) == pytest.approx((3.0, 1.5))
    assert encode.utilisation == pytest.approx((2 * 0.5 + 1.0) / 3)
    assert prefill.utilisation == pytest.approx(1.0), "whatever it was busy with"


def test_instances_that_come_and_go() -> None:
    """One that was made anew begins its count again, and one that is new has none yet."""
    estimator = LoadEstimator()
    estimator.observe(LoadSample(0.0, (InstanceLoad("D0", "D", 1, busy_s=100.0),)))
    instances = (InstanceLoad("D0", "D", 1, busy_s=0.5), InstanceLoad("D1", "D", 1, busy_s=50.0))
    stage = estimator.observe(LoadSample(1.0, instances)).stages["D"]
    assert stage.utilisation == pytest.approx(0.5)
    assert estimator.observe(LoadSample(2.0, ())).stages["D"].utilisation == pytest.approx(0.5), "none: nothing new"


def test_samples_at_one_time_and_back_in_time() -> None:
    estimator = LoadEstimator()
    for now, arrived in ((0.0, 0.0), (0.0, 1.0), (1.0, 3.0)):
        stage = estimator.observe(LoadSample(now, (), arrived_s={"P": arrived})).stages["P"]
    assert stage.arrival_rate == pytest.approx(3.0)
    with pytest.raises(ValueError, match="after"):
        estimator.observe(LoadSample(0.5, ()))
    with pytest.raises(ValueError, match="half_life_s"):
        LoadEstimator(half_life_s=0.0)
