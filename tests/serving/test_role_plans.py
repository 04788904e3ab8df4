"""What a role switch comes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.mesh.places import places_of, spec_of
from epdjax.mesh.spec import MeshSpec
from epdjax.serving.role_plans import (
    SwitchRefused,
    after_switch,
    missing,
    plan_switch,
    rescues,
    single_role_switches,
)

SPECS = st.sampled_from(["5E2P1D", "1E1P1D", "2E2P2D", "8EPD", "1E3PD", "2E1Px2,1Dx4", "7EP1D", "3E,2E1P1D", "1EPD"])
ROLES = st.sampled_from(["E", "P", "D", "EP", "PD", "ED", "EPD"])


def places(text: str, irp: bool = True):
    return places_of(MeshSpec.parse(text), irp=irp)


@pytest.mark.parametrize(
    ("spec", "name", "roles", "devices", "after"),
    [
        ("5E2P1D", "i1", "D", 1, "5E1P2D"),
        ("5E2P1D", "i0", "D", 1, "4E2P2D"),
        ("5E2P1D", "i0", "P", 2, "3E1Px2,2P1D"),
        ("5E2P1D", "i2", "E", 1, "6E1P1D"),
        ("1E1P1D", "i1", "PD", 1, "1E1PD1D"),
        ("1E1PD1D", "i2", "E", 1, "2E1PD"),
        ("2EPD", "i0", "E", 1, "1E1EPD"),
        ("1E1P,1Dx2,1D", "i2", "E", 1, "3E1P1D"),
    ],
)
def test_examples(spec: str, name: str, roles: str, devices: int, after: str) -> None:
    before = places(spec)
    assert str(spec_of(after_switch(before, plan_switch(before, name, roles, devices=devices)))) == after


def test_without_irp_encoders_stay_apart() -> None:
    before = places("2E2P1D", irp=False)
    plan = plan_switch(before, "i2", "E", irp=False)
    assert [place.roles for place in after_switch(before, plan)].count("E") == 3
    assert len(plan.after) == 1


@given(SPECS, st.integers(0, 9), ROLES, st.booleans())
def test_devices_are_kept_and_names_are_unique(spec: str, pick: int, roles: str, irp: bool) -> None:
    before = places(spec, irp)
    try:
        plan = plan_switch(before, before[pick % len(before)].name, roles, irp=irp)
    except SwitchRefused:
        return
    after = after_switch(before, plan)
    assert sorted(d for p in after for d in p.devices) == sorted(d for p in before for d in p.devices)
    assert len({place.name for place in after}) == len(after)
    assert not missing(after)
    assert set(plan.removes) | set(plan.adds)


@pytest.mark.parametrize(
    ("spec", "name", "roles", "devices", "why"),
    [
        ("1E1P1D", "i1", "D", 1, "nobody would prefill"),
        ("1E1P1D", "i0", "D", 1, "nobody would encode"),
        ("2E1P1D", "i0", "P", 0, "at least 1"),
        ("2E1P1D", "i0", "P", 3, "has 2 devices"),
        ("2E1P1D", "i0", "E", 1, "already"),
    ],
)
def test_refused(spec: str, name: str, roles: str, devices: int, why: str) -> None:
    with pytest.raises(SwitchRefused, match=why):
        plan_switch(places(spec), name, roles, devices=devices)


@pytest.mark.parametrize(
    ("spec", "lost", "after"),
    [
        ("1E1P1D", "i2", "1E1PD"),  # the language model is there already
        ("1E1P1D", "i1", "1E1PD"),
        ("1E1P1D", "i0", "1EP1D"),
        ("3E1P1D", "i2", "2E1P1D"),
        ("1E3P1D", "i4", "1E2P1D"),
        ("1E2P2D", "i0", "1E1P2D"),
    ],
)
def test_rescue(spec: str, lost: str, after: str) -> None:
    left = [place for place in places(spec) if place.name != lost]
    assert str(spec_of(after_switch(left, rescues(left)[0]))) == after


@given(SPECS, st.integers(0, 9))
def test_there_is_a_rescue_while_there_is_an_instance(spec: str, pick: int) -> None:
    left = places(spec)
    del left[pick % len(left)]
    plans = rescues(left)
    assert bool(plans) == bool(left)
    assert not any(missing(after_switch(left, plan)) for plan in plans)


def test_what_a_controller_may_choose_from() -> None:
    made = {(plan.instance, plan.removes, plan.adds) for plan in single_role_switches(places("2E2P1D"))}
    assert made == {
        ("i0", "E", "P"),
        ("i0", "E", "D"),
        ("i1", "P", "E"),
        ("i1", "P", "D"),
        ("i2", "P", "E"),
        ("i2", "P", "D"),
    }
