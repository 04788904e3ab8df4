"""What an engine says of itself, in plain data: for `/health`, and for the operator."""

import dataclasses
from typing import Any

from epdjax.mesh.places import Place, spec_of
from epdjax.serving.admission import unserved_message
from epdjax.serving.engine import Engine
from epdjax.serving.role_plans import SwitchPlan
from epdjax.serving.switching import SwitchReport


@dataclasses.dataclass(frozen=True)
class Health:
    """How an engine is doing."""

    ok: bool
    status: str
    detail: dict[str, Any]


def health(engine: Engine, draining: bool) -> Health:
    """Whether requests are being served, and what is."""
    deployment, lost = engine.deployment, engine.outages.lost  # `lost` is replaced, not changed
    unserved = engine.scheduler.unserved if engine.scheduler.hopeless else ""
    status = "dead" if engine.dead else "draining" if draining else "unserved" if unserved else "ready"
    detail: dict[str, Any] = {
        "mesh": str(spec_of(list(deployment.places))),
        "instances": {
            name: {"roles": i.roles, "devices": [str(d) for d in i.submesh.devices]}
            for name, i in list(deployment.instances.items())
        },
        "requests": engine.counts(),
        "programs": len(deployment.programs),
        "compiles_after_ready": deployment.compiles_after_ready,
    }
    if lost:
        detail["taken_out"] = {name: some.why for name, some in lost.items()}
    if engine.dead or unserved:
        detail["reason"] = engine.dead or unserved_message(unserved)
    return Health(status == "ready", status, detail)


def roles(engine: Engine) -> dict[str, Any]:
    """Which instance does what, the load of each stage, and the switches made."""
    steering, switching, lost = engine.steering, engine.switching, engine.outages.lost
    current = switching.current
    described: dict[str, Any] = {
        "mesh": str(spec_of(list(engine.deployment.places))),
        "role_switching": engine.deployment.workshop.config.role_switching,
        "instances": {place.name: _described(place) for place in engine.places},
        "taken_out": {name: some.why for name, some in lost.items()},
        "switching": str(current) if current else None,
        "switches": [reported(report) for report in list(switching.history)],
    }
    if steering is not None and steering.estimate is not None:
        described["load"] = {role: dataclasses.asdict(load) for role, load in steering.estimate.stages.items()}
    if steering is not None and steering.decision is not None:
        described["decision"] = {"reason": steering.decision.reason, **steering.decision.numbers}
    return described


def planned(plan: SwitchPlan) -> dict[str, Any]:
    """The instances that a switch concerns, before and after it."""
    sides = {"before": plan.before, "after": plan.after}
    return {side: {place.name: _described(place) for place in places} for side, places in sides.items()}


def reported(report: SwitchReport) -> dict[str, Any]:
    """A switch that was made, with what it took."""
    numbers = dataclasses.asdict(report)
    del numbers["plan"]
    return planned(report.plan) | numbers


def _described(place: Place) -> dict[str, Any]:
    return {"roles": place.roles, "devices": list(place.devices)}
