"""The serving scheduler under a virtual clock: what a deployment would do, with what its work takes given by a model.

It is the very scheduler that the live engine runs, its role switches and their controller included; only time is not
real. An instance does one thing at a time, and so does a link between two of them.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from epdjax.mesh.places import Place, places_of, spec_of
from epdjax.mesh.spec import MeshSpec
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.controller import Controller, ControllerSettings, Decision
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.load import LoadEstimator
from epdjax.serving.request import RequestSpec
from epdjax.serving.role_plans import KV_ROLES, SwitchPlan, after_switch, candidates, closing_roles, may_keep_kv
from epdjax.serving.scheduler import Finished, Scheduler
from epdjax.serving.work import Decode, MoveKV, MoveMM, Prefill, Work

Seconds = Callable[[Work, InstanceSpec], float]
"""What work takes on an instance."""


@dataclasses.dataclass
class Timeline:
    """What became of a request, in seconds of the virtual clock."""

    arrived: float
    first_token: float = math.nan
    finished: float = math.nan
    tokens: int = 0
    reason: str = ""

    @property
    def latency_s(self) -> float:
        return self.finished - self.arrived

    @property
    def ttft_s(self) -> float:
        return self.first_token - self.arrived

    @property
    def tpot_s(self) -> float:
        """Mean gap between tokens after the first; not a number where there is only one."""
        return (self.finished - self.first_token) / (self.tokens - 1) if self.tokens > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Switched:
    """A role switch that was made: when it was decided, when done, what it was, and the layout after it."""

    decided: float
    done: float
    plan: SwitchPlan
    mesh: str


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each instance holds; see `InstanceSpec`."""

    kv_blocks: int
    mm_blocks: int
    slots: int

    def spec(self, place: Place) -> InstanceSpec:
        """What the scheduler knows of an instance there."""
        roles = set(place.roles)
        return InstanceSpec(
            place.name,
            place.roles,
            kv_blocks=self.kv_blocks if roles & KV_ROLES else 0,
            mm_blocks=self.mm_blocks if "P" in roles else 0,
            slots=self.slots if roles & KV_ROLES else 0,
            encode_width=len(place.devices) if "E" in roles else 0,
            tensor=place.tensor,
        )


class Simulation:
    """One run.

    Args:
        mesh: mesh spec. irp: see `places_of`.
        config, sizes: of the scheduler and its instances.
        seconds: what work takes.
        controller: settings of role switching; None: roles stay.
        migrate_s: of a switch, from an instance being free to its new roles, by the roles taken on.
        finish_s: see `EngineConfig.offload_s`.
    """

    def __init__(
        self,
        mesh: str,
        config: SchedulerConfig,
        sizes: Sizes,
        seconds: Seconds,
        *,
        irp: bool = True,
        controller: ControllerSettings | None = None,
        migrate_s: Mapping[str, float] | None = None,
        finish_s: float = 0.5,
    ):
        self._places = places_of(MeshSpec.parse(mesh), irp=irp)
        self._sizes, self._seconds, self._irp = sizes, seconds, irp
        self.scheduler = Scheduler(config, [sizes.spec(place) for place in self._places])
        self._settings, self._migrate_s, self._finish_s = controller, migrate_s or {}, finish_s
        self._controller = Controller(controller) if controller else None
        self._estimator = LoadEstimator()
        self._switch: _Running | None = None
        self._costs_s: dict[tuple[str, str], float] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        self._free_at: dict[Any, float] = {}
        self.timelines: dict[str, Timeline] = {}
        self.switches: list[Switched] = []
        self.decisions: list[tuple[float, Decision]] = []

    def run(self, arrivals: Sequence[tuple[float, RequestSpec]]) -> dict[str, Timeline]:
        """Serve requests that arrive at given seconds, to the end of the last.

        Raises:
            RuntimeError: nothing can go on although requests are left, which is a bug.
        """
        for at, spec in arrivals:
            self._at(at, lambda now, spec=spec: self._arrive(spec, now))  # type: ignore[misc]
        if self._controller is not None and self._settings is not None:
            self._at(self._settings.interval_s, self._tick)
        left = len(arrivals)
        while left:
            if not self._events:
                raise RuntimeError(f"stuck with {self.scheduler.counts()}")
            now, _, act = heapq.heappop(self._events)
            act(now)
            self._end(self.scheduler.overdue(now), now)
            for work in self.scheduler.next_work(now):
                self._start(work, now)
            self._go_on_switching(now)
            left = sum(1 for timeline in self.timelines.values() if not timeline.reason)
            left += len(arrivals) - len(self.timelines)
        return self.timelines

    def _at(self, at: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._count), act))

    def _arrive(self, spec: RequestSpec, now: float) -> None:
        self.timelines[spec.request_id] = Timeline(now)
        self.scheduler.add(spec, now)

    def _start(self, work: Work, now: float) -> None:
        moves = isinstance(work, (MoveMM, MoveKV))
        lane = (work.source, work.instance) if isinstance(work, (MoveMM, MoveKV)) else work.instance
        seconds = self._seconds(work, self.scheduler.instances[work.instance].spec)
        self._free_at[lane, moves] = max(self._free_at.get((lane, moves), 0.0), now) + seconds
        self._at(self._free_at[lane, moves], lambda at: self._finish(work, at))

    def _finish(self, work: Work, now: float) -> None:
        if isinstance(work, Prefill):
            tokens = [chunk.request_id for chunk in work.chunks if chunk.is_last]
        else:
            tokens = [row.request_id for row in work.sequences] if isinstance(work, Decode) else []
        for request_id in tokens:
            timeline = self.timelines[request_id]
            if not timeline.reason:
                timeline.tokens += 1
                if timeline.tokens == 1:
                    timeline.first_token = now
        self._end(self.scheduler.finished(work, now), now)

    def _end(self, events: Iterable[Finished], now: float) -> None:
        for event in events:
            timeline = self.timelines[event.request_id]
            timeline.finished, timeline.reason = now, event.reason

    # ---- role switching -------------------------------------------------------------------------------------------

    @property
    def mesh(self) -> str:
        """The layout as it is."""
        return str(spec_of(self._places))

    def _tick(self, now: float) -> None:
        assert self._controller is not None and self._settings is not None
        self._at(now + self._settings.interval_s, self._tick)
        estimate = self._estimator.observe(self.scheduler.meter.sample(now))
        if self._switch is not None:
            return
        plans = candidates(self._places, self._costs_s, self._irp)
        decision = self._controller.decide(now, estimate, list(plans))
        self.decisions.append((now, decision))
        if decision.candidate is not None:
            self._begin(plans[decision.candidate], now)

    def _begin(self, plan: SwitchPlan, now: float) -> None:
        after = {place.name: place for place in plan.after}
        for place in plan.before:
            target = after.get(place.name)
            keeps = may_keep_kv(place, target)
            closing = closing_roles(place.roles, target.roles if target else "", keeps_kv=keeps)
            self.scheduler.roles.offload(place.name, closing, keeps_kv=keeps)
        switch = self._switch = _Running(plan, now)
        self._at(now + self._finish_s, lambda now: self._evict(switch))

    def _evict(self, switch: "_Running") -> None:
        if self._switch is switch and not switch.migrating:
            for place in switch.plan.before:
                self.scheduler.roles.evict(place.name)

    def _go_on_switching(self, now: float) -> None:
        switch = self._switch
        if switch is None or switch.migrating:
            return
        if all(self.scheduler.roles.is_evacuated(place.name) for place in switch.plan.before):
            switch.migrating = True
            self._at(now + self._migrate_s.get(switch.plan.adds, 0.0), self._onload)

    def _onload(self, now: float) -> None:
        assert self._switch is not None
        plan = self._switch.plan
        ends = {place.name for place in plan.before} - {place.name for place in plan.after}
        self.scheduler.roles.go_over(ends, [self._sizes.spec(place) for place in plan.after])
        self._places = after_switch(self._places, plan)
        self._costs_s[plan.removes, plan.adds] = now - self._switch.began
        self.switches.append(Switched(self._switch.began, now, plan, self.mesh))
        self._switch = None


@dataclasses.dataclass
class _Running:
    """A switch under way."""

    plan: SwitchPlan
    began: float
    migrating: bool = False
