"""The paper's experiment on role switching under the virtual clock."""

import pytest

from epdjax.planning.paper import role_switching as experiment
from epdjax.planning.paper.role_switching import AS_PAPER, OURS
from epdjax.planning.simulator import Simulation


def test_as_in_the_paper() -> None:
    """Encoders become decoders as there, and it gains about as much."""
    off, on = (experiment.run(AS_PAPER, switching=switching) for switching in (False, True))
    assert off.mesh == "5E1P2D" and not off.switches
    assert on.switches[0].mesh == "4E1P3D" and len(on.switches) >= 3
    for found, paper in ((off, experiment.PAPER_OFF), (on, experiment.PAPER_ON)):
        assert {name: getattr(found, name) for name in paper} == pytest.approx(paper, rel=0.2)


def test_switching_helps_this_scheduler_too() -> None:
    off, on = (experiment.run(OURS, switching=switching) for switching in (False, True))
    assert on.latency_s < 0.6 * off.latency_s and on.tpot_s < 0.6 * off.tpot_s


def test_it_is_deterministic() -> None:
    assert experiment.run(AS_PAPER, switching=True, seed=3) == experiment.run(AS_PAPER, switching=True, seed=3)


def test_every_token_of_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    run = Simulation.run
    monkeypatch.setattr(Simulation, "run", lambda self, arrivals: seen.setdefault("all", run(self, arrivals)))
    experiment.run(AS_PAPER, switching=True)
    assert [t.tokens for t in seen["all"].values()] == [50] * 10 + [500] * 90
    assert {t.reason for t in seen["all"].values()} == {"length"}
    assert all(t.arrived <= t.first_token <= t.finished for t in seen["all"].values())
