"""What a role switch comes to on a deployment as it is: which instances change, end and begin. Pure.

An instance keeps its name and devices and gets other roles. With two exceptions, because the devices that only encode
do so together: a device that is to encode joins the group, and one that leaves the group becomes an instance.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from epdjax.mesh.places import Place, free_name
from epdjax.mesh.spec import ROLES, STAGE_OF_ROLE
from epdjax.serving.errors import InvalidRequest
from epdjax.serving.forecast import Candidate

KV_ROLES = frozenset("PD")
FIRST_COST_S = 0.7  # of a kind of switch that was not made yet: the most that the EPD paper states


class SwitchRefused(InvalidRequest):
    """A role switch that cannot be made; nothing has been changed."""

    status = 409
    code = "switch_refused"


@dataclasses.dataclass(frozen=True)
class SwitchPlan:
    """The instances concerned, as they are and as they will be.

    Attributes:
        instance: the one that the switch was asked of.
    """

    instance: str
    before: tuple[Place, ...]
    after: tuple[Place, ...]

    @property
    def removes(self) -> str:
        """Roles that devices give up."""
        return self._moved(self.before, self.after)

    @property
    def adds(self) -> str:
        """Roles that devices get."""
        return self._moved(self.after, self.before)

    @staticmethod
    def _moved(these: Iterable[Place], those: Iterable[Place]) -> str:
        def devices(role: str, places: Iterable[Place]) -> set[int]:
            return {device for place in places if role in place.roles for device in place.devices}

        these, those = tuple(these), tuple(those)
        return "".join(role for role in ROLES if devices(role, these) - devices(role, those))

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.before))} -> {', '.join(map(str, self.after)) or 'nothing'}"


def plan_switch(places: Sequence[Place], name: str, roles: str, *, devices: int = 1, irp: bool = True) -> SwitchPlan:
    """Work out a switch.

    Args:
        places: all instances.
        name: the one to change.
        roles: some of E, P and D in any order.
        devices: of a group of encoders, how many leave it.
        irp: devices that only encode do so together.

    Raises:
        SwitchRefused: unknown instance or roles, nothing to change, or a stage would be left without an instance.
    """
    place = next((place for place in places if place.name == name), None)
    if place is None:
        raise SwitchRefused(
            f"there is no instance {name!r}; there are {', '.join(p.name for p in places)}", param="instance"
        )
    wanted = read_roles(roles)
    if wanted == place.roles:
        raise SwitchRefused(f"{name} performs {_stages(wanted)} already", param="roles")
    group = next((p for p in places if p.roles == "E" and p is not place), None) if irp else None
    if wanted == "E" and group is not None:
        joined = dataclasses.replace(group, devices=(*group.devices, *place.devices))
        plan = SwitchPlan(name, (place, group), (joined,))
    elif place.data > devices:
        if devices < 1:
            raise SwitchRefused(f"devices must be at least 1, not {devices}", param="devices")
        rest = dataclasses.replace(place, devices=place.devices[:-devices])
        plan = SwitchPlan(name, (place,), (rest, Place(free_name(places), wanted, place.devices[-devices:])))
    elif devices > len(place.devices):
        raise SwitchRefused(f"{name} has {len(place.devices)} devices, not {devices}", param="devices")
    else:
        plan = SwitchPlan(name, (place,), (dataclasses.replace(place, roles=wanted),))
    check_served(after_switch(places, plan))
    return plan


def read_roles(text: str) -> str:
    """Roles in their order.

    Raises:
        SwitchRefused: none, or unknown ones, or one twice.
    """
    upper = text.strip().upper()
    if not upper or set(upper) - set(ROLES) or len(set(upper)) != len(upper):
        raise SwitchRefused(
            f"roles must be some of E (encode), P (prefill) and D (decode), each once, not {text!r}", param="roles"
        )
    return "".join(role for role in ROLES if role in upper)


def after_switch(places: Sequence[Place], plan: SwitchPlan) -> list[Place]:
    """All instances as they will be, in the order of their devices."""
    concerned = {place.name for place in plan.before}
    left = [place for place in places if place.name not in concerned]
    return sorted([*left, *plan.after], key=lambda place: place.devices)


def may_keep_kv(before: Place | None, after: Place | None) -> bool:
    """Whether an instance can go on with its KV pool: it needs one before and after, on the same devices."""
    if before is None or after is None or before.devices != after.devices:
        return False
    return bool(KV_ROLES & set(before.roles) and KV_ROLES & set(after.roles))


def closing_roles(before: str, after: str, *, keeps_kv: bool) -> str:
    """Roles that an instance gives up, for good or until its pools are new."""
    return "".join(role for role in before if role not in after or (role in KV_ROLES and not keeps_kv))


def check_served(places: Iterable[Place]) -> None:
    """Refuse to leave a stage without an instance.

    Raises:
        SwitchRefused: names the stage.
    """
    left = missing(places)
    if left:
        raise SwitchRefused(f"nobody would {_stages(left)}: it is the last instance of that stage", param="roles")


def missing(places: Iterable[Place]) -> str:
    """The roles that nobody performs."""
    performed = {role for place in places for role in place.roles}
    return "".join(role for role in ROLES if role not in performed)


def rescues(places: Sequence[Place], *, irp: bool = True) -> list[SwitchPlan]:
    """Switches after which every stage has an instance again, the best first: an instance of a stage that has several
    changes over; or else one takes on a second role, the language model's two stages together if possible."""
    lost = missing(places)
    plans = []
    for place, roles in itertools.product(places, _role_sets()):
        try:
            plans.append(plan_switch(places, place.name, roles, irp=irp))
        except SwitchRefused:
            continue

    def burden(plan: SwitchPlan) -> tuple[int, int, int]:
        made = next(place for place in reversed(plan.after) if set(lost) <= set(place.roles))
        siblings = sum(place.roles == plan.before[0].roles for place in places)
        needs_encoder = "E" in made.roles and len(made.roles) > 1
        return len(made.roles), needs_encoder, -max(siblings, plan.before[0].data)

    return sorted((plan for plan in plans if _makes(plan, lost)), key=burden)


def single_role_switches(places: Sequence[Place], *, irp: bool = True) -> list[SwitchPlan]:
    """The switches a controller may choose from: a device or an instance of one stage changes over to another."""
    plans = []
    for place, role in itertools.product(places, ROLES):
        if len(place.roles) == 1:
            try:
                plans.append(plan_switch(places, place.name, role, irp=irp))
            except SwitchRefused:
                continue
    return plans


def candidates(
    places: Sequence[Place], costs_s: Mapping[tuple[str, str], float], irp: bool
) -> dict[Candidate, SwitchPlan]:
    """The switches a controller may choose from, each with its plan.

    Args:
        costs_s: what switches have cost, by the roles given up and taken on.
    """
    found = {}
    for plan in single_role_switches(places, irp=irp):
        place = next(place for place in places if place.name == plan.instance)
        devices = 1 if place.data > 1 else len(place.devices)
        cost_s = costs_s.get((plan.removes, plan.adds), FIRST_COST_S)
        found[Candidate(place.name, place.roles, plan.removes, plan.adds, devices, cost_s)] = plan
    return found


def _makes(plan: SwitchPlan, roles: str) -> bool:
    return any(set(roles) <= set(place.roles) for place in plan.after)


def _role_sets() -> list[str]:
    return ["".join(some) for count in (1, 2, 3) for some in itertools.combinations(ROLES, count)]


def _stages(roles: str) -> str:
    return " and ".join(STAGE_OF_ROLE[role] for role in roles)
