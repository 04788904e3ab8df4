"""A fluid model of three stages in a row, whose devices a controller may switch: for tests of its decisions.

Work comes as many small parcels, each needing service at every stage, one after the other, first come first served.
A switched device serves nothing until its switch is done.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping

from epdjax.serving.controller import Candidate, Controller, ControllerSettings, Decision
from epdjax.serving.load import ROLES, InstanceLoad, LoadEstimator, LoadSample

Rates = Mapping[str, float]  # device-seconds of service that come per second, by role
STEPS = 8  # in an interval between samples


@dataclasses.dataclass
class Run:
    """What came of a run: every decision, the switches among them, and the devices of each stage at the end."""

    decisions: list[tuple[float, Decision]]
    devices: dict[str, int]

    @property
    def switches(self) -> list[tuple[float, Candidate]]:
        return [(at, made.candidate) for at, made in self.decisions if made.candidate is not None]


class Stages:
    """The stages, their queues, and the devices that are being switched.

    Args:
        local: what a sample tells of a stage is what has come to that stage, not what is still before an earlier one.
    """

    def __init__(self, devices: Mapping[str, int], cost_s: float, local: bool):
        self.devices = dict(devices)
        self.cost_s, self.local = cost_s, local
        self.coming: list[tuple[float, str]] = []
        self.queues: dict[str, collections.deque[dict[str, float]]] = {r: collections.deque() for r in ROLES}
        self.admitted, self.entered, self.served = (dict.fromkeys(ROLES, 0.0) for _ in range(3))
        self.busy_s = dict.fromkeys(ROLES, 0.0)

    def step(self, now: float, lasts_s: float, rates: Rates) -> None:
        for at, role in self.coming:
            if at <= now:
                self.devices[role] += 1
        self.coming = [(at, role) for at, role in self.coming if at > now]
        parcel = {role: rates[role] * lasts_s for role in ROLES}
        for role in ROLES:
            self.admitted[role] += parcel[role]
        self._enter("E", parcel)
        for role, after in zip(ROLES, [*ROLES[1:], None]):
            left = room = self.devices[role] * lasts_s
            queue = self.queues[role]
            while queue and left > 0:
                part = min(left, queue[0][role])
                queue[0][role] -= part
                left -= part
                if queue[0][role] <= 0:
                    done = queue.popleft()
                    if after:
                        self._enter(after, done)
            self.served[role] += room - left
            self.busy_s[role] += (room - left) / self.devices[role]

    def _enter(self, role: str, parcel: dict[str, float]) -> None:
        self.entered[role] += parcel[role]
        self.queues[role].append(parcel)

    def sample(self, now: float) -> LoadSample:
        """The encoders are one IRP group; the others are instances of a device each."""
        instances = []
        for role, count in self.devices.items():
            here_s = max(0.0, self.entered[role] - self.served[role]) / count
            group = [("E", count)] if role == "E" else [(f"{role}{i}", 1) for i in range(count)]
            instances += [InstanceLoad(name, role, n, {role: here_s}, self.busy_s[role]) for name, n in group]
        upstream = {role: self.admitted[role] - self.entered[role] for role in ROLES}
        arrived = self.entered if self.local else self.admitted
        return LoadSample(now, tuple(instances), {} if self.local else upstream, dict(arrived), dict(self.served))

    def candidates(self) -> list[Candidate]:
        """A device from every stage that has two to every other."""
        pairs = [(a, b) for a, b in itertools.permutations(ROLES, 2) if self.devices[a] > 1]
        names = {role: "E" if role == "E" else f"{role}{count - 1}" for role, count in self.devices.items()}
        return [Candidate(names[a], a, a, b, 1, self.cost_s) for a, b in pairs]

    def switch(self, now: float, candidate: Candidate) -> None:
        self.devices[candidate.removes] -= 1
        self.coming.append((now + self.cost_s, candidate.adds))


def run(
    devices: Mapping[str, int],
    rates: Callable[[float], Rates],
    lasts_s: float,
    settings: ControllerSettings,
    *,
    half_life_s: float = 5.0,
    cost_s: float = 0.7,
    local: bool = False,
) -> Run:
    """Let load come to some devices under a controller, `rates` saying at what time how much."""
    stages, estimator, controller = Stages(devices, cost_s, local), LoadEstimator(half_life_s), Controller(settings)
    decisions = []
    for sample in range(round(lasts_s / settings.interval_s)):
        now = sample * settings.interval_s
        decision = controller.decide(now, estimator.observe(stages.sample(now)), stages.candidates())
        decisions.append((now, decision))
        if decision.candidate is not None:
            stages.switch(now, decision.candidate)
        for step in range(STEPS):
            at = now + step * settings.interval_s / STEPS
            stages.step(at, settings.interval_s / STEPS, rates(at))
    for _, role in stages.coming:
        stages.devices[role] += 1
    return Run(decisions, stages.devices)


def slowest(devices: Mapping[str, int], rates: Rates) -> float:
    """What the slowest stage has to do, as a multiple of what it can."""
    return max(rates[role] / devices[role] for role in ROLES)


def best_slowest(devices: int, rates: Rates) -> float:
    """The same where the devices are divided as well as can be, found by trying all ways."""
    return min(
        slowest({"E": e, "P": p, "D": devices - e - p}, rates)
        for e in range(1, devices - 1)
        for p in range(1, devices - e)
    )
