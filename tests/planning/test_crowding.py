"""Cores that steps want, with steps that take no cores but one another's time."""

import threading
import time

import pytest

from epdjax.planning.costs import crowding


def test_steps_that_hold_each_other_up_want_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that take turns want all cores together; what gets in nobody's way wants what it keeps busy."""
    monkeypatch.setattr(crowding, "SECONDS", 0.2)
    turn = threading.Lock()

    def taking_turns() -> None:
        with turn:
            time.sleep(0.005)
        time.sleep(0.0005)  # the other's turn

    calls = {(0, "encode"): taking_turns, (1, "prefill"): taking_turns, (2, "decode"): lambda: time.sleep(0.005)}
    wanted = crowding.cores_wanted(calls, dict.fromkeys(calls, 0.5), cores=4)
    assert wanted[0, "encode"] + wanted[1, "prefill"] == pytest.approx(8, rel=0.25)
    calls = {(0, "encode"): taking_turns, (0, "decode"): taking_turns}
    assert crowding.cores_wanted(calls, dict.fromkeys(calls, 0.5), cores=4) == pytest.approx(dict.fromkeys(calls, 0.5))
