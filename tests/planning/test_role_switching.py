"""The paper's experiment on role switching under the virtual clock."""

import pytest

from epdjax.planning import role_switching as experiment
from epdjax.planning.simulator import Simulation

COSTS = experiment.PaperCosts(decode_row_s=0.0034)


def test_as_in_the_paper() -> None:
    """It ends where the paper's does, and gains at least as much."""
    off, on = (experiment.run(COSTS, switching=switching) for switching in (False, True))
    assert off.mesh == "5E1P2D" and not off.switches
    assert on.mesh == "2E1P5D" and len(on.switches) == 3
    assert {(s.plan.removes, s.plan.adds) for s in on.switches} == {("E", "D")}
    assert off.tpot_s == pytest.approx(experiment.PAPER_OFF["tpot_s"], rel=0.05)
    assert off.latency_s / on.latency_s > 2.0 and off.tpot_s / on.tpot_s > 2.0


def test_it_is_deterministic() -> None:
    assert experiment.run(COSTS, switching=True, seed=3) == experiment.run(COSTS, switching=True, seed=3)


def test_every_token_of_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    run = Simulation.run
    monkeypatch.setattr(Simulation, "run", lambda self, arrivals: seen.setdefault("all", run(self, arrivals)))
    experiment.run(COSTS, switching=True)
    assert [t.tokens for t in seen["all"].values()] == [50] * 10 + [500] * 90
    assert {t.reason for t in seen["all"].values()} == {"length"}
    assert all(t.arrived <= t.first_token <= t.finished for t in seen["all"].values())
