"""How long each stage will need, with the devices as they are, and with some of them switched to other roles.

A stage's work is its backlog and what arrives over a horizon, so that one that cannot keep up counts before its queue
is long, and one that has caught up is not robbed of the devices it needs to stay so.
"""

import dataclasses
import math

from epdjax.serving.clearing import Place, clear_times
from epdjax.serving.load import ROLES, Estimate

KV_FULL = 0.9
"""Share of KV blocks held from which sequences have to wait or are preempted: those being decoded need more of them
all the time, so a pool is never used up to the last."""
KV_STEEPNESS = 4
"""At 0.75 of its KV held a stage is at half of what it can take, at 0.6 at a fifth, when full at one and a half: room
that is half used is no load at all, unlike half the time."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A switch that could be made, worked out by somebody who knows that it leaves no stage unserved.

    Attributes:
        instance: whose devices are switched.
        roles: of that instance, now.
        removes: those of them that the devices give up.
        adds: roles that they take on.
        devices: how many; all of the instance's, or some of an IRP group.
        cost_s: seconds during which they serve nothing: queued work is handed over, parameters come, caches are made.
    """

    instance: str
    roles: str
    removes: str
    adds: str
    devices: int
    cost_s: float

    def __post_init__(self) -> None:
        if not set(self.removes) <= set(self.roles) or set(self.adds) & set(self.roles) or not self.new_roles:
            raise ValueError(
                f"{self.instance!r} performs {self.roles!r}: it cannot give up {self.removes!r} for {self.adds!r}"
            )
        if not self.removes and not self.adds:
            raise ValueError(f"a switch of {self.instance!r} changes nothing")
        if self.devices < 1 or not 0 <= self.cost_s < math.inf:
            raise ValueError(f"a switch of {self.instance!r} has {self.devices} devices and costs {self.cost_s} s")

    @property
    def new_roles(self) -> str:
        """What the devices perform afterwards."""
        return "".join(role for role in ROLES if role in self.adds or (role in self.roles and role not in self.removes))


def stage_times(estimate: Estimate, horizon_s: float, switch: Candidate | None = None) -> dict[str, float]:
    """Seconds that each stage needs for its backlog and for what arrives in the next `horizon_s` at the present rate.

    The devices that are switched are lost at once, and back in their new roles after `cost_s`.

    Decode has a second limit, the room for KV: sequences that find none wait or are preempted, and its backlog says
    nothing of it. At `KV_FULL` it is as loaded as it can be, and takes the whole horizon at least; see
    `KV_STEEPNESS` for what is below and above. Room grows and shrinks with the devices that decode.

    Raises:
        ValueError: the switch is of an instance that is not there, or of more devices than it has.
    """
    work = {role: load.backlog_s + horizon_s * load.arrival_rate for role, load in estimate.stages.items()}
    places = _places(estimate, switch)
    times = clear_times(work, places)
    decode = estimate.stages["D"]
    if decode.kv_pressure > 0:
        devices = sum(place.devices for place in places if "D" in place.roles)
        pressure = decode.kv_pressure * decode.devices / devices if devices else math.inf
        comes_s = max((place.begins for place in places if "D" in place.roles), default=0.0)
        times["D"] = max(times["D"], comes_s + horizon_s * (pressure / KV_FULL) ** KV_STEEPNESS)
    return times


def _places(estimate: Estimate, switch: Candidate | None) -> list[Place]:
    instances = {instance.name: (instance.roles, instance.devices) for instance in estimate.sample.instances}
    if switch is None:
        return [Place(roles, devices) for roles, devices in instances.values()]
    roles, devices = instances.get(switch.instance, ("", 0))
    if roles != switch.roles or devices < switch.devices:
        raise ValueError(f"{switch.instance!r} has {devices} devices performing {roles!r}; the switch is {switch}")
    instances[switch.instance] = (roles, devices - switch.devices)
    places = [Place(roles, devices) for roles, devices in instances.values() if devices]
    return [*places, Place(switch.new_roles, switch.devices, begins=switch.cost_s)]
