"""Lanes do one thing after another, at the speed that the cores leave them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.planning.lanes import Lanes


def drain(lanes: Lanes) -> None:
    while lanes.next < float("inf"):
        lanes.pop()


def test_in_the_order_started() -> None:
    lanes, seen = Lanes(), []
    for lane, name, seconds in (("a", "a1", 1.0), ("a", "a2", 2.0), ("b", "b1", 2.5)):
        lanes.start(lane, seconds, lambda began, ended, name=name: seen.append((name, began, ended)), 0.0)
    lanes.start("c", 1.0, lambda began, ended: seen.append(("c1", began, ended)), 0.0, after="a")
    lanes.start("c", 1.0, lambda began, ended: seen.append(("c2", began, ended)), 0.0, after="nothing")
    drain(lanes)
    assert seen == [("a1", 0, 1), ("c2", 0, 1), ("b1", 0, 2.5), ("a2", 1, 3), ("c1", 3, 4)]


def test_a_lane_may_be_wide() -> None:
    lanes, ends = Lanes(), []
    for _ in range(5):
        lanes.start("host", 1.0, lambda _, ended: ends.append(ended), 0.0, width=2)
    drain(lanes)
    assert ends == [1, 1, 2, 2, 3]


def test_all_slow_down_alike() -> None:
    """Alone until 1, then two jobs that want three cores of two, then one alone again."""
    lanes, ends = Lanes(cores=2.0), {}
    lanes.start("a", 3.0, lambda _, ended: ends.update(a=ended), 0.0, demand=1.5)
    lanes.start("gate", 1.0, lambda _, now: lanes.start("b", 1.0, lambda _, e: ends.update(b=e), now, demand=1.5), 0.0)
    drain(lanes)
    assert ends["b"] == pytest.approx(1 + 1.5) and ends["a"] == pytest.approx(1 + 1.5 + 1)


def test_some_take_more_than_others() -> None:
    """The short one waits behind the long one and goes at half its speed; the long one loses a fifth of its own."""
    lanes, ends = Lanes(cores=2.0, takes={("long", "short"): 2.5, ("short", "long"): 1.0}), {}
    for kind, seconds in (("short", 1.0), ("long", 2.6)):
        lanes.start(kind, seconds, lambda _, end, kind=kind: ends.update({kind: end}), 0.0, demand=1.5, kind=kind)
    drain(lanes)
    assert ends == {"short": pytest.approx(2.0), "long": pytest.approx(2.0 + (2.6 - 2.0 / 1.25))}


def test_the_first_after_a_pause_wakes_the_rest() -> None:
    lanes, ends = Lanes(waking_s=0.5), []
    lanes.start("a", 1.0, lambda _, now: lanes.start("a", 1.0, lambda _, end: ends.append(end), now), 0.0)
    drain(lanes)
    lanes.start("a", 1.0, lambda _, ended: ends.append(ended), 10.0)
    drain(lanes)
    assert ends == [0.5 + 1 + 1, 11.5]


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 5), st.floats(0.1, 3)), min_size=1, max_size=12))
def test_no_more_is_done_than_there_are_cores_for(jobs: list[tuple[int, float, float]]) -> None:
    lanes, ends = Lanes(cores=2.0), []
    for lane, seconds, demand in jobs:
        lanes.start(lane, seconds, lambda began, ended: ends.append((began, ended)), 0.0, demand=demand)
    drain(lanes)
    last = max(ended for _, ended in ends)
    assert len(ends) == len(jobs)
    assert last >= sum(seconds * demand for _, seconds, demand in jobs) / max(2.0, max(d for *_, d in jobs)) - 1e-6
    longest = max(sum(s for lane, s, _ in jobs if lane == mine) for mine in range(3))
    assert last >= longest - 1e-6
    assert all(ended - began >= min(s for _, s, _ in jobs) - 1e-6 for began, ended in ends)
