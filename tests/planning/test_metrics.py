"""What a run is summed up to, against numbers worked out by hand."""

import math

import pytest

from epdjax.planning.metrics import SLO, Spread, Timeline, report

FAST = Timeline(1.0, 2.0, [1.5, 1.6, 2.0], "stop")
SLOW = Timeline(2.0, 6.0, [5.0, 6.0], "length")
SHORT = Timeline(3.0, 3.5, [3.5], "length")
LOST = Timeline(3.0, 4.0, [], "error")


def test_a_request() -> None:
    assert (FAST.ttft_s, FAST.latency_s) == (0.5, 1.0)
    assert FAST.tpot_s == pytest.approx(0.25)
    assert math.isnan(SHORT.tpot_s) and math.isnan(LOST.ttft_s)
    slo = SLO(1.0, 0.3)
    assert [timeline.meets(slo) for timeline in (FAST, SLOW, SHORT, LOST)] == [True, False, True, False]
    assert not FAST.meets(SLO(0.4, 1.0)) and not FAST.meets(SLO(1.0, 0.2))


def test_a_run() -> None:
    found = report([FAST, SLOW, SHORT, LOST], SLO(1.0, 0.3))
    assert (found.requests, found.answered, found.tokens, found.seconds) == (4, 3, 6, 5.0)
    assert found.attainment == 0.5
    assert found.requests_s == pytest.approx(0.6) and found.tokens_s == pytest.approx(1.2)
    assert found.ttft.mean == pytest.approx((0.5 + 3.0 + 0.5) / 3)
    assert found.itl.mean == pytest.approx((0.1 + 0.4 + 1.0) / 3)
    assert found.tpot.p50 == pytest.approx((0.25 + 1.0) / 2)
    assert math.isnan(report([FAST]).attainment) and math.isnan(report([]).ttft.mean)


def test_spreads() -> None:
    found = Spread.of([math.nan, *range(101)])
    assert (found.mean, found.p50, found.p90, found.p99) == (50, 50, 90, 99)
