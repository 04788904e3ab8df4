"""The serving scheduler under a virtual clock: what a deployment would do, with what its work takes given by a model.

It is the very scheduler that the live engine runs, its role switches and their controller included; only time is not
real. An instance does one thing at a time, and so does a link between two of them.
"""

import collections
import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from epdjax.mesh.places import Place, places_of, spec_of
from epdjax.mesh.spec import MeshSpec
from epdjax.planning.gauges import Gauges, MMMoves
from epdjax.planning.lanes import Lanes
from epdjax.planning.machine import IDEAL, Machine
from epdjax.planning.metrics import SLO, Moves, Report, Timeline, report
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.controller import Controller, ControllerSettings, Decision
from epdjax.serving.errors import RequestError
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.load import LoadEstimator
from epdjax.serving.request import RequestSpec
from epdjax.serving.role_plans import KV_ROLES, SwitchPlan, after_switch, candidates, closing_roles, may_keep_kv
from epdjax.serving.scheduler import Finished, Scheduler
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work

Seconds = Callable[[Work, InstanceSpec], float]
"""What work takes on an instance."""


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
        config: of the scheduler.
        sizes: what an instance on a place holds, such as `Sizes.spec`.
        seconds: what work takes.
        controller: settings of role switching; None: roles stay.
        migrate_s: of a switch, from an instance being free to its new roles, by the roles taken on.
        finish_s: see `EngineConfig.offload_s`.
        machine: what it runs on.
        sample_s: between samples of the queues.
    """

    def __init__(
        self,
        mesh: str,
        config: SchedulerConfig,
        sizes: Callable[[Place], InstanceSpec],
        seconds: Seconds,
        *,
        irp: bool = True,
        controller: ControllerSettings | None = None,
        migrate_s: Mapping[str, float] | None = None,
        finish_s: float = 0.5,
        machine: Machine = IDEAL,
        sample_s: float = 0.1,
    ):
        self._places = places_of(MeshSpec.parse(mesh), irp=irp)
        self._sizes, self._seconds, self._irp = sizes, seconds, irp
        self.scheduler = Scheduler(config, [sizes(place) for place in self._places])
        self._settings, self._migrate_s, self._finish_s = controller, migrate_s or {}, finish_s
        self._controller = Controller(controller) if controller else None
        self._estimator = LoadEstimator()
        self._switch: _Running | None = None
        self._costs_s: dict[tuple[str, str], float] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        cores = machine.cores
        self._machine, self._lanes = machine, Lanes(cores.count, cores.waking_s, cores.takes) if cores else Lanes()
        self._running: collections.Counter[str] = collections.Counter()
        self._left = 0
        self._enough: Callable[[Timeline], bool] | None = None
        self._gauges, self._mm_moves = Gauges(self.scheduler, sample_s), MMMoves()
        self.timelines: dict[str, Timeline] = {}
        self.switches: list[Switched] = []
        self.decisions: list[tuple[float, Decision]] = []

    def run(
        self, arrivals: Sequence[tuple[float, RequestSpec]], enough: Callable[[Timeline], bool] | None = None
    ) -> dict[str, Timeline]:
        """Serve requests that arrive at given seconds, to the end of the last.

        Args:
            enough: asked of each request that ends whether to stop there; then those that have come are as they are,
                and the others have no timeline.

        Raises:
            RuntimeError: nothing can go on although requests are left, which is a bug.
        """
        for at, spec in arrivals:
            self._at(at, functools.partial(self._arrive, spec))
        if self._controller is not None and self._settings is not None:
            self._at(self._settings.interval_s, self._tick)
        self._left, self._enough = len(arrivals), enough
        while self._left > 0:
            now = min(self._next_event, self._lanes.next)
            if now == math.inf:
                raise RuntimeError(f"stuck with {self.scheduler.counts()}")
            while self._lanes.next <= now:  # what happens at once is answered once
                self._lanes.pop()
            while self._next_event <= now:
                heapq.heappop(self._events)[2](now)
            if self.scheduler.next_deadline <= now:
                self._end(self.scheduler.overdue(now), now)
            for work in self.scheduler.next_work(now):
                self._start(work, now)
            self._go_on_switching(now)
            self._gauges.look(now)
        return self.timelines

    def report(self, slo: SLO | None = None) -> Report:
        """The run summed up."""
        kv = self.scheduler.moves.stats
        moves = {"mm": self._mm_moves.sum, "kv": Moves(kv.seconds, kv.exposed_s)}
        return report(list(self.timelines.values()), slo, self._gauges.usage(), moves)

    @property
    def _next_event(self) -> float:
        return self._events[0][0] if self._events else math.inf

    def _at(self, at: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._count), act))

    def _arrive(self, spec: RequestSpec, now: float) -> None:
        self.timelines[spec.request_id] = Timeline(now)
        host = self._machine.host
        if host is not None and (prepare_s := host.seconds(spec)):
            enter = functools.partial(self._enter, spec)
            self._lanes.start("host", prepare_s, lambda _, now: enter(now), now, demand=1.0, width=host.workers)
        else:
            self._enter(spec, now)

    def _enter(self, spec: RequestSpec, now: float) -> None:
        try:
            self.scheduler.add(spec, now)
        except RequestError as error:
            self._close(spec.request_id, now, error.code)

    def _start(self, work: Work, now: float) -> None:
        if self._machine.loop_s is not None:
            self._loop(self._machine.loop_s(work)[0], functools.partial(self._launch, work), now)
        else:
            self._launch(work, now)

    def _loop(self, seconds: float, then: Callable[[float], None], now: float) -> None:
        self._lanes.start("loop", seconds, lambda _, now: then(now), now, demand=1.0)

    def _launch(self, work: Work, now: float) -> None:
        instance = self.scheduler.instances[work.instance].spec
        seconds = self._seconds(work, instance)
        end = functools.partial(self._ended, work)
        cores = self._machine.cores
        demand = cores.demand(work, instance) if cores is not None else 0.0
        match work:
            case MoveMM():
                self._lanes.start((work.source, work.instance), seconds, end, now, demand=demand)
            case MoveKV():
                after = work.source if self._machine.in_order else None
                self._lanes.start((work.source, work.instance), seconds, end, now, demand=demand, after=after)
            case _:
                if isinstance(work, Decode) and not self._running[work.instance]:
                    seconds += self._machine.fresh_s
                self._running[work.instance] += 1
                self._lanes.start(work.instance, seconds, end, now, demand=demand, kind=type(work))

    def _ended(self, work: Work, began: float, now: float) -> None:
        seconds = now - began
        if not isinstance(work, (MoveMM, MoveKV)):
            self._gauges.ran(work.instance, seconds)
            self._running[work.instance] -= 1
        if self._machine.loop_s is not None:
            self._loop(self._machine.loop_s(work)[1], functools.partial(self._finish, work, seconds), now)
        else:
            self._finish(work, seconds, now)

    def _finish(self, work: Work, seconds: float, now: float) -> None:
        match work:
            case Prefill():
                tokens = [chunk.request_id for chunk in work.chunks if chunk.is_last]
            case Decode():
                tokens = [row.request_id for row in work.sequences]
            case _:
                tokens = []
        for request_id in tokens:
            timeline = self.timelines[request_id]
            if not timeline.reason and self.scheduler.wants(request_id):
                self._hand_over(timeline.token_times.append, now)
        done = self.scheduler.finished(work, now)
        if isinstance(work, Encode):
            self._mm_moves.encoded(work, now)
        elif isinstance(work, MoveMM):
            self._mm_moves.landed(work, seconds, now, self.scheduler)
        if done:
            self._hand_over(functools.partial(self._end, done), now, seconds=0.0)

    def _hand_over(self, then: Callable[[float], None], now: float, seconds: float | None = None) -> None:
        """What clients see; in the order in which it was made."""
        if self._machine.token_s:
            self._loop(self._machine.token_s if seconds is None else seconds, then, now)
        else:
            then(now)

    def _end(self, events: Iterable[Finished], now: float) -> None:
        for event in events:
            self._close(event.request_id, now, event.reason)

    def _close(self, request_id: str, now: float, reason: str) -> None:
        timeline = self.timelines[request_id]
        timeline.finished, timeline.reason = now, reason
        self._left -= 1
        if self._enough is not None and self._enough(timeline):
            self._left = 0

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
        self.scheduler.roles.go_over(ends, [self._sizes(place) for place in plan.after])
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
