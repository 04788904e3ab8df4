"""The controller of role switching: when it switches, when it does not, and where that ends."""

import dataclasses
import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from epdjax.serving.controller import Candidate, Controller, ControllerSettings
from epdjax.serving.forecast import stage_times
from epdjax.serving.load import ROLES, Estimate, InstanceLoad, LoadEstimator, LoadSample
from tests.serving.fluid import STEPS, Rates, Run, best_slowest, run, slowest

DEFAULTS = ControllerSettings()
EASY = {"horizon_s": 10.0, "min_gain_s": 1.0, "hysteresis": 1.25}  # numbers that are easy to follow
AT_ONCE = ControllerSettings(sustain=1, cooldown_s=0.0, **EASY)


def look(layout: str, kv_held: float = 0.0, rates: Rates | None = None, **backlog_s: float) -> Estimate:
    """An estimate of instances of one device each: `layout` lists their roles, `backlog_s` what waits."""
    instances = tuple(
        InstanceLoad(f"{roles}{i}", roles, 1, kv_held=kv_held if "D" in roles else 0.0)
        for i, roles in enumerate(layout.split())
    )
    estimator = LoadEstimator()
    estimator.observe(LoadSample(0.0, instances))
    return estimator.observe(LoadSample(1.0, instances, backlog_s, rates or {}))


def switches(layout: str, cost_s: float = 0.7) -> list[Candidate]:
    """Every instance of one role, to every other role, where its stage has another instance."""
    roles = layout.split()
    places = [(f"{r}{i}", r) for i, r in enumerate(roles) if len(r) == 1 and sum(r in other for other in roles) > 1]
    return [Candidate(name, r, r, to, 1, cost_s) for name, r in places for to in ROLES if to != r]


def test_a_switch_in_numbers() -> None:
    """Two devices need 15 s for 30 device-seconds of decoding. With a third after 0.7 s: 0.7 s for 1.4 of them, and
    9.53 s for the rest. Four devices have 2 s of encoding, or three have it for 2.67."""
    layout = "E E E E P D D"
    decision = Controller(AT_ONCE).decide(0.0, look(layout, E=8, P=2, D=30), switches(layout))
    assert decision.candidate == Candidate("E0", "E", "E", "D", 1, 0.7)
    assert decision.reason == "a stage is too slow"
    assert decision.numbers == pytest.approx(
        {"E_s": 2, "P_s": 2, "D_s": 15, "E_after_s": 8 / 3, "P_after_s": 2, "D_after_s": 0.7 + 28.6 / 3}
        | {"gain_s": 14.3 - 28.6 / 3, "needed_s": 1.0, "cost_s": 0.7, "agreed": 1}
    )


def test_arrivals_count_over_the_horizon() -> None:
    """Nothing waits, but 2.4 device-seconds of decoding come every second and two devices do 2."""
    layout = "E E E P D D"
    estimate = look(layout, rates={"E": 0.6, "P": 0.5, "D": 2.4})
    assert stage_times(estimate, 10.0) == pytest.approx({"E": 2, "P": 5, "D": 12})
    decision = Controller(AT_ONCE).decide(0.0, estimate, switches(layout))
    assert decision.candidate is not None and (decision.candidate.removes, decision.candidate.adds) == ("E", "D")


@pytest.mark.parametrize(
    ("backlog_s", "reason"),
    [
        ({"E": 20.0, "P": 5.0, "D": 10.0}, "every stage keeps up"),
        ({"E": 60.0, "P": 14.0, "D": 30.0}, "no switch gains enough"),  # the stage that gave would be as slow
    ],
)
def test_what_is_left_alone(backlog_s: dict[str, float], reason: str) -> None:
    layout = "E E E E P D D"
    decision = Controller(AT_ONCE).decide(0.0, look(layout, **backlog_s), switches(layout))
    assert decision.candidate is None and decision.reason == reason
    assert {"E_s", "P_s", "D_s"} <= set(decision.numbers)


def test_a_switch_must_be_worth_its_cost() -> None:
    """Taking a device from encoding would save decoding 5 s, less what is lost; that is not worth a switch of 5 s."""
    layout = "E E E E P D D"
    estimate = look(layout, E=8, P=2, D=30)
    dear = Controller(AT_ONCE).decide(0.0, estimate, switches(layout, cost_s=5.0))
    assert dear.candidate is None and dear.reason == "no switch gains enough"
    assert dear.numbers["needed_s"] == pytest.approx(6.25) and 0 < dear.numbers["gain_s"] < 6.25
    assert Controller(AT_ONCE).decide(0.0, estimate, []).reason == "no switch is possible"


def test_two_stages_equally_slow() -> None:
    """Neither can be helped so that the slowest stage is faster at once; one after the other they can."""
    layout = "E E E E E E P D"
    decision = Controller(AT_ONCE).decide(0.0, look(layout, E=1, P=20, D=20), switches(layout))
    assert decision.candidate is not None and decision.candidate.removes == "E"
    assert decision.numbers["gain_s"] > 5


def test_full_kv_makes_decode_the_slowest_stage() -> None:
    """Its backlog is 2 s, encoding needs 8 s; but sequences wait for room, of which a third device brings more."""
    layout = "E E E P D D"
    for held, adds in ((0.5, None), (1.0, "D")):
        estimate = look(layout, held, E=24, P=1, D=4)
        choices = [c for c in switches(layout) if c.adds != "E"]
        candidate = Controller(AT_ONCE).decide(0.0, estimate, choices).candidate
        assert (candidate and candidate.adds) == adds
    times = [stage_times(look(layout, held, D=4), 10.0)["D"] for held in (0.0, 0.5, 0.9, 1.0)]
    assert times == pytest.approx([2.0, 2.0, 10.0, 15.24], abs=0.01)


def test_room_for_kv_is_not_given_away() -> None:
    """Decoding has nothing to do that takes long, but what it holds fills more than half of its room."""
    layout = "E P P D D"
    for held, gives in ((0.2, "D"), (0.6, "P")):
        estimate = look(layout, held, E=20, P=2)
        candidate = Controller(AT_ONCE).decide(0.0, estimate, [c for c in switches(layout) if c.adds == "E"][::-1])
        assert candidate.candidate is not None and candidate.candidate.removes == gives


def test_devices_of_several_roles() -> None:
    """Eight monoliths are never too slow in one stage only; of one E and two PD, one gives its decoding away."""
    estimate = look("E PD PD", E=30, P=1, D=1)
    frees = Candidate("PD1", "PD", "PD", "E", 1, 0.7)
    assert Controller(AT_ONCE).decide(0.0, estimate, [frees]).candidate == frees
    layout = " ".join(["EPD"] * 8)
    alone = [Candidate(f"EPD{i}", "EPD", "EPD".replace(r, ""), "", 1, 0.7) for i in range(8) for r in ROLES]
    decision = Controller(AT_ONCE).decide(0.0, look(layout, E=100, P=1, D=1), alone)
    assert decision.candidate is None, "they encode together already"


def test_part_of_an_irp_group() -> None:
    group = (InstanceLoad("E", "E", 5), InstanceLoad("P", "P", 1), InstanceLoad("D", "D", 1))
    estimate = LoadEstimator().observe(LoadSample(0.0, group, {"E": 5.0, "D": 20.0}))
    decision = Controller(AT_ONCE).decide(0.0, estimate, [Candidate("E", "E", "E", "D", n, 0.7) for n in (1, 3)])
    assert decision.candidate is not None and decision.candidate.devices == 3
    assert decision.numbers["E_after_s"] == 2.5


def test_samples_in_a_row_that_agree() -> None:
    layout = "E E E E P D D"
    busy, quiet, choices = look(layout, D=30), look(layout), switches(layout)
    controller = Controller(DEFAULTS)
    reasons = [
        controller.decide(float(now), estimate, choices).reason
        for now, estimate in enumerate([busy, busy, quiet, busy, busy, busy, busy])
    ]
    wait, switch, rest = "not for long enough yet", "a stage is too slow", "cooling down after a switch"
    assert reasons == [wait, wait, "every stage keeps up", wait, wait, switch, rest]
    assert controller.decide(6.5, busy, choices).reason == "asked too soon"


def test_a_switch_is_undone_only_for_much_more() -> None:
    """Decoding was helped and was done 4 s sooner; it gives the device back for twice that, or after a minute."""
    layout, after = "E E E P D", "E E P D D"
    helped = Controller(AT_ONCE).decide(0.0, look(layout, E=6, D=10), switches(layout))
    gain_s = helped.numbers["gain_s"]
    for encode_s, at, allowed in ((20, 5.0, False), (20, 70.0, True), (60, 5.0, True)):
        controller = Controller(AT_ONCE)
        assert controller.decide(0.0, look(layout, E=6, D=10), switches(layout)).candidate == helped.candidate
        back = [c for c in switches(after) if c.removes == "D"]
        decision = controller.decide(at, look(after, E=encode_s, P=1, D=1), back)
        assert (decision.candidate is not None) == allowed
        if not allowed:
            assert decision.reason == "would undo a recent switch"
            assert decision.numbers["needed_s"] == pytest.approx(2 * gain_s)


def test_no_more_than_so_many_in_a_minute() -> None:
    layout = "E E E E P D D"
    controller = Controller(dataclasses.replace(AT_ONCE, max_per_minute=2))
    reasons = [controller.decide(float(now), look(layout, D=60), switches(layout)).reason for now in (0, 5, 10, 59, 60)]
    assert reasons == ["a stage is too slow"] * 2 + ["too many switches in a minute"] * 2 + ["a stage is too slow"]


WRONG = {"interval_s": 0, "hysteresis": 0.9, "sustain": 0, "max_per_minute": 0, "cooldown_s": -1}


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), ("horizon_s", math.inf), ("min_gain_s", math.nan)])
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(DEFAULTS, **{name: value})


def test_candidates_are_checked() -> None:
    for removes, adds in (("P", "D"), ("E", "E"), ("E", ""), ("", "")):
        with pytest.raises(ValueError, match="E0"):
            Candidate("E0", "E", removes, adds, 1, 0.7)
    with pytest.raises(ValueError, match="devices"):
        Candidate("E0", "E", "E", "P", 0, 0.7)
    unknown = Candidate("E7", "E", "E", "D", 1, 0.7)
    with pytest.raises(ValueError, match="E7"):
        Controller(AT_ONCE).decide(0.0, look("E P D", D=30), [unknown])


# ---- what holds for any load --------------------------------------------------------------------------------------

layouts = st.fixed_dictionaries({role: st.integers(1, 5) for role in ROLES})
shares = st.floats(0.0, 1.0)
fewer = settings(max_examples=25, deadline=None)


def alternating(first: Rates, second: Rates, period_s: float) -> Callable[[float], Rates]:
    return lambda now: first if now % period_s < period_s / 2 else second


def check_limits(result: Run, limits: ControllerSettings, cost_s: float = 0.7) -> None:
    times = [at for at, _ in result.switches]
    assert all(b - a >= cost_s + limits.cooldown_s for a, b in pairwise(times))
    assert all(sum(at <= other < at + 60 for other in times) <= limits.max_per_minute for at in times)
    assert all(decision.reason and decision.numbers for _, decision in result.decisions)


@fewer
@given(layouts, st.floats(0.05, 1.3), st.integers(0, 1000))
def test_under_steady_balanced_load_nothing_is_switched(devices: dict[str, int], share: float, seed: int) -> None:
    """Every stage has the same share of its devices to do, even more than it can, give or take a fifth."""
    noise = random.Random(seed)
    result = run(devices, lambda _: {r: devices[r] * share * noise.uniform(0.8, 1.2) for r in ROLES}, 120, DEFAULTS)
    assert result.switches == []


@fewer
@given(
    layouts, st.lists(st.floats(0.3, 0.9), min_size=3, max_size=3), shares, st.permutations(ROLES), st.floats(0.5, 3.7)
)
def test_load_that_goes_back_and_forth_settles(
    devices: dict[str, int], loads: list[float], swing: float, roles: list[str], period_s: float
) -> None:
    """Between two stages, up to all of it, faster than one switch may follow another; on the whole all keep up."""
    mean = {role: devices[role] * load for role, load in zip(ROLES, loads)}
    up, down = roles[:2]
    one = mean | {up: mean[up] * (1 + swing), down: mean[down] * (1 - swing)}
    other = mean | {up: mean[up] * (1 - swing), down: mean[down] * (1 + swing)}
    result = run(devices, alternating(one, other, period_s), 240, DEFAULTS)
    check_limits(result, DEFAULTS)
    assert len(result.switches) <= 4
    assert all(at < 120 for at, _ in result.switches)


@fewer
@given(
    devices=layouts,
    loads=st.lists(st.fixed_dictionaries({r: st.floats(0.1, 6) for r in ROLES}), min_size=2, max_size=2),
    period_s=st.floats(1, 100),
    local=st.booleans(),
    limits=st.builds(
        ControllerSettings,
        cooldown_s=st.floats(0, 10),
        min_gain_s=st.floats(0, 2),
        hysteresis=st.floats(1, 2),
        keeps_up=shares,
        sustain=st.integers(1, 4),
        max_per_minute=st.integers(1, 8),
    ),
)
def test_limits_hold_under_any_load(
    devices: dict[str, int], loads: list[Rates], period_s: float, local: bool, limits: ControllerSettings
) -> None:
    result = run(devices, alternating(*loads, period_s), 200, limits, local=local)
    check_limits(result, limits)


@fewer
@given(
    st.fixed_dictionaries({role: st.floats(0.2, 6) for role in ROLES}),
    st.sampled_from([{"E": 4.0, "P": 0.7, "D": 1.2}, {"E": 1.0, "P": 0.2, "D": 0.3}]),
)
def test_a_lasting_shift_ends_near_the_best_division(later: Rates, first: Rates) -> None:
    """From 5E1P2D, with 30 s of load that suits it: in the end the slowest stage keeps up, give or take the least gain
    of a switch, or is slower by no more than the hysteresis than it would be with the best of all divisions of the
    eight devices."""
    best = best_slowest(8, later)
    assume(best < 0.95)
    start = {"E": 5, "P": 1, "D": 2}
    result = run(start, lambda now: first if now < 30 else later, 240, DEFAULTS)
    check_limits(result, DEFAULTS)
    assert sum(result.devices.values()) == 8
    fine = DEFAULTS.keeps_up + DEFAULTS.min_gain_s / DEFAULTS.horizon_s
    assert slowest(result.devices, later) <= max(fine, DEFAULTS.hysteresis * best)


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_not_taken_for_a_shift(seed: int) -> None:
    """Requests at random, three a second, their sizes different; the division suits them, and all are 0.9 busy."""
    chance, devices, step_s = random.Random(seed), {"E": 5, "P": 1, "D": 2}, DEFAULTS.interval_s / STEPS

    def rates(_: float) -> Rates:
        requests = sum(chance.random() < 3 * step_s / 10 for _ in range(10))
        return {r: requests / (3 * step_s) * 0.9 * n * chance.choice([0.5, 1, 1.5]) for r, n in devices.items()}

    assert len(run(devices, rates, 300, DEFAULTS).switches) <= 1


def test_longer_answers_as_in_the_paper() -> None:
    """Table 6 of the EPD paper: answers become ten times as long at 5E1P2D; the paper ends at 2E1P5D."""
    short, long = {"E": 1.8, "P": 0.6, "D": 0.45}, {"E": 1.8, "P": 0.6, "D": 4.5}
    result = run({"E": 5, "P": 1, "D": 2}, lambda now: short if now < 3 else long, 33, DEFAULTS)
    assert [(c.removes, c.adds) for _, c in result.switches] == [("E", "D")] * 3
    assert result.devices == {"E": 2, "P": 1, "D": 5}
    assert result.switches[0][0] <= 7 and result.switches[-1][0] <= 20


@fewer
@given(
    layouts,
    st.lists(st.fixed_dictionaries({r: st.floats(0.1, 6) for r in ROLES}), min_size=2, max_size=2),
    st.sampled_from([0.125, 0.5, 4.0]),
)
def test_decisions_do_not_depend_on_the_unit_of_time(devices: dict[str, int], loads: list[Rates], scale: float) -> None:
    """All times as many times as long, those of the settings too; and the same once more is the same. The number of
    switches in a minute is out of the way: the minute cannot be scaled."""
    limits = dataclasses.replace(DEFAULTS, max_per_minute=10_000)
    scaled = dataclasses.replace(
        limits,
        **{f.name: getattr(limits, f.name) * scale for f in dataclasses.fields(limits) if f.name.endswith("_s")},
    )

    def decisions(times: float, limits: ControllerSettings) -> list:
        rates = alternating(*loads, 60 * times)
        result = run(devices, rates, 100 * times, limits, half_life_s=5 * times, cost_s=0.75 * times)
        return [
            (at / times, decision.candidate and decision.candidate.instance, decision.reason)
            for at, decision in result.decisions
        ]

    assert decisions(1.0, limits) == decisions(scale, scaled) == decisions(scale, scaled)
