import time

import pytest

from epdjax.planning.benchmarks.machine_clock import MachineClock, Probe


def test_the_clock_goes_slower_while_the_machine_does() -> None:
    clock = MachineClock([(10.0, 1.0), (11.0, 1.0), (12.0, 2.0), (13.0, 1.0)], typical_s=1.0)
    assert [clock.own(at) for at in (10, 11, 12, 13)] == [0, 1, 1.5, 2.5]
    assert clock.own(9.0) == -1.0 and clock.own(15.0) == 4.5
    for at in (9.0, 10.2, 11.7, 14.0):
        assert clock.wall(clock.own(at)) == pytest.approx(at)


def test_a_probe_samples_the_machine() -> None:
    with Probe() as probe:
        time.sleep(0.5)
    moments, seconds = zip(*probe.samples)
    assert list(moments) == sorted(moments) and len(moments) > 1
    assert min(seconds) > 0 and min(seconds) <= probe.typical_s <= max(seconds)
