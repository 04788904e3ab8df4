"""Work for an event does not grow with what waits. Bytecodes are counted, so this comes out the same each time."""

import pytest

from epdjax.planning.benchmarks.crowds import CROWDS, EVENTS, Crowd, bytecodes, cost_of, cost_of_next_work, seconds

FEW, MANY = 24, 240


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("crowd", CROWDS)
def test_an_event_costs_as_much_for_each_request(crowd: str, event: str) -> None:
    few, many = (cost_of(event, CROWDS[crowd](count), bytecodes) / count for count in (FEW, MANY))
    assert many <= 3 * few, f"{few:.0f} bytecodes a request grow to {many:.0f}"


@pytest.mark.parametrize("crowd", CROWDS)
def test_the_next_work_is_found_as_fast(crowd: str) -> None:
    few, many = (cost_of_next_work(CROWDS[crowd](count), bytecodes) for count in (64, 640))
    assert many <= 2 * few, f"{few:.0f} bytecodes grow to {many:.0f}"


def test_what_grows_is_seen() -> None:
    """The meter sees what runs in Python, inside comprehensions as well."""
    costs = []
    for count in (100, 1000):
        with bytecodes() as spent:
            sum([number * number for number in range(count)])
        costs += spent
    assert 8 < costs[1] / costs[0] <= 10
    assert cost_of("all leave", Crowd(3), seconds) > 0
