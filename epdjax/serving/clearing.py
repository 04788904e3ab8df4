"""How long stages need to clear the work before them, where some instances perform several of them.

An instance with several roles gives its time to whichever of them has work. So stages that share all their devices
end together, each getting time in proportion to its backlog; and where a stage has devices of its own besides, the
shared ones go first to the stage that would end last. This is the best a scheduler can do that never idles, and what
least-loaded assignment comes close to.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Place:
    """Devices that perform some roles together.

    Attributes:
        roles: some of ``"EPD"``.
        devices: how many.
        begins: seconds from now on when they begin to; devices that are being switched come later.
    """

    roles: str
    devices: int
    begins: float = 0.0


def clear_times(work: Mapping[str, float], places: Sequence[Place]) -> dict[str, float]:
    """Seconds until each stage has done its work; infinite where it has work and nobody to do it.

    Some stages, taken together, need the longest for what they have on the devices that may do any of it: they end
    then, and have these devices for themselves until then. The rest shares the rest in the same way.

    Args:
        work: role -> device-seconds of service.
        places: all devices.
    """
    times = dict.fromkeys(work, 0.0)
    left = [role for role in work if work[role] > 0]
    while left:
        groups = [group for n in range(1, len(left) + 1) for group in itertools.combinations(left, n)]
        ends = {group: _time_for(sum(work[r] for r in group), _serving(group, places)) for group in groups}
        last = max(groups, key=lambda group: (ends[group], len(group)))
        times |= dict.fromkeys(last, ends[last])
        taken = _serving(last, places)
        places = [place for place in places if place not in taken]
        left = [role for role in left if role not in last]
    return times


def _serving(roles: Collection[str], places: Sequence[Place]) -> list[Place]:
    """The places that perform any of some roles."""
    return [place for place in places if any(role in place.roles for role in roles)]


def _time_for(work: float, places: Sequence[Place]) -> float:
    """Seconds that places need for device-seconds of work, all of them working on it as soon as they begin."""
    devices, done, now = 0, 0.0, 0.0
    for place in sorted(places, key=lambda place: place.begins):
        if done + devices * (place.begins - now) >= work:
            break
        done += devices * (place.begins - now)
        now = place.begins
        devices += place.devices
    return now + (work - done) / devices if devices else math.inf
