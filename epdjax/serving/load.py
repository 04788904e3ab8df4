"""How loaded each stage is, in seconds of service: what the role-switching controller and the metrics look at.

The EPD paper monitors queues (its section on role switching), and its released code compares their raw lengths, one
stage's requests with another's tokens, without the queues between stages, which is where the backlog really is. Here
every queue is counted in device-seconds: how long one device needs for what is in it.

Pure: samples carry their time with them.
"""

import dataclasses
import math
from collections.abc import Mapping

from epdjax.serving.clearing import Place, clear_times

ROLES = "EPD"
HALF_LIFE_S = 5.0
"""An observation of so many seconds ago counts half: long enough that some ten requests make a rate at the loads
where a few devices are busy, and not longer than it takes to switch an instance and see what came of it."""


@dataclasses.dataclass(frozen=True)
class InstanceLoad:
    """What an instance has before it.

    Attributes:
        name: unique in the deployment.
        roles: some of ``"EPD"``; none while it is being switched.
        devices: what it runs on: the width of an IRP group, or of tensor parallelism.
        backlog_s: role -> seconds it needs for what was given to it and is not done, on all its devices together.
        busy_s: seconds it has worked since it was made.
        kv_held: share of its KV blocks that requests hold; what only a cache keeps does not count.
    """

    name: str
    roles: str
    devices: int
    backlog_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    busy_s: float = 0.0
    kv_held: float = 0.0


@dataclasses.dataclass(frozen=True)
class LoadSample:
    """A look at all queues. All seconds below are device-seconds of service, by role; 0 where a role is not named.

    Attributes:
        now: when, seconds on any clock that goes forward.
        between_s: of requests that no instance of that stage has yet. That is those that wait for one, and those
            still at an earlier stage: what waits for an encoder will have to be prefilled and decoded as well, and a
            stage whose queue is long because the next one is full must not look slower than that one.
        arrived_s: that came, since the beginning. A request comes to all its stages when it is admitted, so that a
            stage behind a slow one is known to be too small before the slow one was made faster.
        served_s: that were served, since the beginning.
    """

    now: float
    instances: tuple[InstanceLoad, ...]
    between_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    arrived_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    served_s: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StageLoad:
    """The load of one stage.

    Attributes:
        instances, devices: that perform it, those included that perform others too.
        backlog_s: device-seconds of service in all its queues.
        wait_s: how long it needs to clear them, seconds; `clear_times` says how instances with several roles count.
        arrival_rate: device-seconds of service that come per second, smoothed: devices that it keeps busy.
        service_rate: device-seconds of service that are done per second, smoothed.
        utilisation: share of the time that its instances are at work, whatever the stage they work for, smoothed.
        kv_pressure: share of the KV blocks of its instances that is held, the mean over their devices.
    """

    instances: int = 0
    devices: int = 0
    backlog_s: float = 0.0
    wait_s: float = 0.0
    arrival_rate: float = 0.0
    service_rate: float = 0.0
    utilisation: float = 0.0
    kv_pressure: float = 0.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A sample, and what it and those before say of each stage."""

    sample: LoadSample
    stages: Mapping[str, StageLoad]


class Smoothed:
    """A mean over time in which what is a half-life older counts half, however the observations are spaced."""

    def __init__(self, half_life_s: float):
        self._half_life_s = half_life_s
        self._total = self._weight = 0.0

    def observe(self, value: float, lasted_s: float) -> None:
        """It was `value` on average for the last so many seconds."""
        new = -math.expm1(-math.log(2) * lasted_s / self._half_life_s)
        self._total += new * (value - self._total)
        self._weight += new * (1 - self._weight)

    @property
    def value(self) -> float:
        """The mean; 0 where nothing was observed."""
        return self._total / self._weight if self._weight else 0.0


class LoadEstimator:
    """Makes estimates from samples.

    Args:
        half_life_s: of the rates and the utilisation.
    """

    def __init__(self, half_life_s: float = HALF_LIFE_S):
        if not 0 < half_life_s < math.inf:
            raise ValueError(f"half_life_s must be a positive number of seconds, not {half_life_s}")
        self._arrivals = {role: Smoothed(half_life_s) for role in ROLES}
        self._services = {role: Smoothed(half_life_s) for role in ROLES}
        self._busy = {role: Smoothed(half_life_s) for role in ROLES}
        self._last: LoadSample | None = None  # what growth is measured from

    def observe(self, sample: LoadSample) -> Estimate:
        """Take in a sample.

        Raises:
            ValueError: it is older than the one before.
        """
        last = self._last or sample
        lasted_s = sample.now - last.now
        if lasted_s < 0:
            raise ValueError(f"a sample of {sample.now} s came after one of {last.now} s")
        if lasted_s > 0:
            for role in ROLES:
                self._arrivals[role].observe(_grown(sample.arrived_s, last.arrived_s, role) / lasted_s, lasted_s)
                self._services[role].observe(_grown(sample.served_s, last.served_s, role) / lasted_s, lasted_s)
                self._observe_busy(role, sample, last, lasted_s)
        if lasted_s > 0 or self._last is None:  # of two samples at one time the growth counts to the next
            self._last = sample
        backlog = {role: _backlog_s(sample, role) for role in ROLES}
        waits = clear_times(backlog, [Place(i.roles, i.devices) for i in sample.instances])
        return Estimate(sample, {role: self._stage(sample, role, backlog[role], waits[role]) for role in ROLES})

    def _observe_busy(self, role: str, sample: LoadSample, last: LoadSample, lasted_s: float) -> None:
        before = {i.name: i.busy_s for i in last.instances}
        known = [i for i in sample.instances if role in i.roles and i.name in before]
        if known:
            worked = sum(i.devices * _since(i.busy_s, before[i.name]) for i in known)
            # More than 1 where long work ended just now: part of it belongs to earlier samples.
            self._busy[role].observe(worked / lasted_s / sum(i.devices for i in known), lasted_s)

    def _stage(self, sample: LoadSample, role: str, backlog_s: float, wait_s: float) -> StageLoad:
        serving = [i for i in sample.instances if role in i.roles]
        devices = sum(i.devices for i in serving)
        return StageLoad(
            instances=len(serving),
            devices=devices,
            backlog_s=backlog_s,
            wait_s=wait_s,
            arrival_rate=self._arrivals[role].value,
            service_rate=self._services[role].value,
            utilisation=min(1.0, self._busy[role].value),
            kv_pressure=sum(i.devices * i.kv_held for i in serving) / devices if devices else 0.0,
        )


def _backlog_s(sample: LoadSample, role: str) -> float:
    """Device-seconds in all queues of a stage, what is left on instances that no longer perform it included."""
    given = sum(i.devices * i.backlog_s.get(role, 0.0) for i in sample.instances)
    return given + sample.between_s.get(role, 0.0)


def _grown(now: Mapping[str, float], before: Mapping[str, float], role: str) -> float:
    return _since(now.get(role, 0.0), before.get(role, 0.0))


def _since(now: float, before: float) -> float:
    """How much a running total has grown; one that fell was begun anew, with an instance that was made anew."""
    return now - before if now >= before else now
