"""Role switches carried out on a live deployment, one at a time: offload, migrate, onload (EPD paper, role switching).

Each runs on a thread of its own, which prepares and waits; whatever touches the scheduler or the instances that serve
it hands to the engine's thread. While the programs of the new roles are compiled everything is served as before.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

from epdjax.mesh.devices import InstanceMesh, on_devices
from epdjax.mesh.places import Place
from epdjax.mesh.transfer import gather_shards
from epdjax.serving.compiles import compile_counter
from epdjax.serving.deployment import Deployment, check_tensor_widths
from epdjax.serving.errors import EngineEnded
from epdjax.serving.instance import Instance
from epdjax.serving.outages import Outages
from epdjax.serving.programs import compile_all, jobs_of
from epdjax.serving.role_changes import RoleChanges
from epdjax.serving.role_plans import (
    SwitchPlan,
    SwitchRefused,
    after_switch,
    closing_roles,
    may_keep_kv,
    missing,
    rescues,
)
from epdjax.serving.waiter import Waiters
from epdjax.serving.workshop import Parts

log = logging.getLogger(__name__)
T = TypeVar("T")
POLL_S = 0.002
REMEMBERED = 100  # switches
COMPILE_THREADS = 1  # serving goes on beside it


class Host(Protocol):
    """What a switch needs of the engine."""

    deployment: Deployment

    outages: Outages
    waiters: Waiters

    @property
    def roles(self) -> RoleChanges: ...

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread; raises `EngineEnded` where that has ended."""
        ...

    def give_up(self) -> None:
        """End the requests that nobody can serve any more."""
        ...


@dataclasses.dataclass(frozen=True)
class SwitchReport:
    """A switch that was made.

    Attributes:
        plan: what has changed.
        prepare_s: compiling what was not compiled yet; served on meanwhile.
        offload_s: from the first request turned away to the last one gone.
        migrate_s: parameters and pools. moved_bytes: of parameters, from other devices or the checkpoint.
        onload_s: taking up the new roles.
        compiled: programs.
    """

    plan: SwitchPlan
    prepare_s: float
    offload_s: float
    migrate_s: float
    onload_s: float
    moved_bytes: int
    compiled: int

    @property
    def seconds(self) -> float:
        """Without preparation: from the first request turned away to the first that is taken in the new roles."""
        return self.offload_s + self.migrate_s + self.onload_s


@dataclasses.dataclass
class _Change:
    """An instance that begins, or goes on with other roles.

    Attributes:
        mesh: where it is. shaped: it, without parameters, with its programs. before: what was there under its name.
        keeps_kv: it goes on with the KV pool.
    """

    mesh: InstanceMesh
    shaped: Instance
    before: Instance | None
    keeps_kv: bool
    made: Instance | None = None

    @property
    def keeps_mm(self) -> bool:
        """Whether it goes on with the MM pool as well."""
        return self.keeps_kv and self.before is not None and self.before.performs("P") and "P" in self.mesh.roles

    @property
    def closing(self) -> str:
        """Roles that it gives up, for good or until its pools are new."""
        return closing_roles(self.before.roles if self.before else "", self.mesh.roles, keeps_kv=self.keeps_kv)


class Switching:
    """See the module.

    Args:
        host: the engine.
        finish_s: what may finish where it is when roles are given up has so long; then it is moved or started over.
        give_up_s: a switch that has not got its instances free after so long is called off.
    """

    def __init__(self, host: Host, *, finish_s: float = 0.5, give_up_s: float = 30.0):
        self._host, self._finish_s, self._give_up_s = host, finish_s, give_up_s
        self._one_at_a_time = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._threads_lock = threading.Lock()  # switches are begun by clients, rescues by the engine, others wait
        self.current: SwitchPlan | None = None
        self.history: collections.deque[SwitchReport] = collections.deque(maxlen=REMEMBERED)

    def start(self, plan: SwitchPlan) -> "concurrent.futures.Future[SwitchReport]":
        """Begin a switch that was planned for the deployment as it is; the future tells how it went.

        Raises:
            SwitchRefused: another one is under way.
        """
        if not self._one_at_a_time.acquire(blocking=False):
            raise SwitchRefused(f"another switch is under way: {self.current}; try again when it is done")
        self.current = plan
        future: concurrent.futures.Future[SwitchReport] = concurrent.futures.Future()
        self._begin(threading.Thread(target=self._run, args=(plan, future), name="epdjax-switch", daemon=True))
        return future

    def rescue(self) -> None:
        """A stage has no instance any more: give it one, by the first switch that can be made; where there is none,
        its requests are told so."""
        self._begin(threading.Thread(target=self._rescue, name="epdjax-rescue", daemon=True))

    def _begin(self, thread: threading.Thread) -> None:
        with self._threads_lock:
            thread.start()
            self._threads = [*(t for t in self._threads if t.is_alive()), thread]

    def _rescue(self) -> None:
        irp = self._host.deployment.workshop.config.irp
        if not self._one_at_a_time.acquire(timeout=2 * self._give_up_s):
            log.error("a switch does not end, so there is no way to serve %s again", missing(self._places()))
            return
        try:
            places = self._places()
            for plan in rescues(places, irp=irp) if missing(places) else ():
                self.current = plan
                try:
                    with compile_counter().expected():
                        self.history.append(self._switch(plan))
                except EngineEnded:
                    raise
                except Exception:
                    log.exception("no rescue by %s", plan)
                else:
                    log.warning("rescued by %s", plan)
                    break
            self._host.call(self._host.give_up)
        except EngineEnded:
            log.info("the engine has ended")
        except Exception:
            log.exception("the rescue has failed")
        finally:
            self._end()

    def join(self, timeout_s: float) -> None:
        """Wait for a switch under way to end; a thread that is inside JAX when the interpreter ends takes the process
        down."""
        with self._threads_lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout_s)

    def _run(self, plan: SwitchPlan, future: "concurrent.futures.Future[SwitchReport]") -> None:
        try:
            with compile_counter().expected():
                report = self._switch(plan)
        except Exception as error:
            if isinstance(error, (SwitchRefused, EngineEnded)):
                log.info("the switch %s was not made: %s", plan, error)
            else:
                log.exception("the switch %s failed", plan)
            self._end()
            future.set_exception(error)
        else:
            log.info(
                "switched %s in %.3f s: offload %.3f, migrate %.3f (%.1f MiB), onload %.3f; prepared in %.1f s",
                *(plan, report.seconds, report.offload_s, report.migrate_s),
                *(report.moved_bytes / 2**20, report.onload_s, report.prepare_s),
            )
            self.history.append(report)
            self._end()
            future.set_result(report)

    def _places(self) -> list[Place]:
        """All instances as they are; the engine's thread changes them."""
        return list(self._host.deployment.places)

    def _instances(self) -> dict[str, Instance]:
        """Likewise."""
        return dict(self._host.deployment.instances)

    def _end(self) -> None:
        self.current = None
        self._one_at_a_time.release()

    # ---- the steps of a switch ------------------------------------------------------------------------------------

    def _switch(self, plan: SwitchPlan) -> SwitchReport:
        clock = _Clock()
        programs = len(self._host.deployment.programs)
        changes = self._prepare(plan)
        compiled = len(self._host.deployment.programs) - programs
        prepare_s = clock.lap()
        goes_on, there = {change.mesh.name for change in changes}, self._instances()
        ends = [place.name for place in plan.before if place.name in there and place.name not in goes_on]
        concerned = [*ends, *(change.mesh.name for change in changes if change.before)]
        try:
            self._offload(changes, ends)
            offload_s = clock.lap()
            moved = self._migrate(changes)
            migrate_s = clock.lap()
            self._host.call(lambda: self._onload(plan, changes, ends))
        except Exception:
            self._call_off(concerned)
            raise
        return SwitchReport(plan, prepare_s, offload_s, migrate_s, clock.lap(), moved, compiled)

    def _prepare(self, plan: SwitchPlan) -> list[_Change]:
        """Make the instances that begin or change, of shapes for now, see that they fit, and compile what is missing
        for them and for their partners."""
        deployment = self._host.deployment
        was = {place.name: place for place in plan.before}
        changes = [self._change(place, may_keep_kv(was.get(place.name), place)) for place in plan.after]
        gone = {place.name for place in plan.before}
        staying = [i for name, i in self._instances().items() if name not in gone]
        everything = [i.spec for i in staying] + [change.shaped.spec for change in changes]
        if not self._host.call(lambda: self._host.roles.could_serve(everything)):
            raise SwitchRefused("requests that are being served would not fit the instances that are left")
        everyone = [*staying, *(change.shaped for change in changes)]
        jobs = [job for instance in everyone for job in jobs_of(instance, everyone)]
        compile_all(jobs, deployment.programs, threads=COMPILE_THREADS)
        return changes

    def _change(self, place: Place, keeps: bool) -> _Change:
        deployment = self._host.deployment
        workshop = deployment.workshop
        mesh = on_devices(place, deployment.devices)
        before = deployment.instances.get(place.name)
        try:
            check_tensor_widths([mesh], deployment.model)
            in_use = self._in_use_after(mesh)
            blocks = before.spec.kv_blocks if before is not None and keeps else None
            if blocks is None or (in_use is not None and workshop.kv_blocks(mesh, in_use) < blocks):
                keeps, blocks = False, workshop.kv_blocks(mesh, in_use)
        except ValueError as error:
            raise SwitchRefused(f"{place} cannot be made: {error}") from error
        return _Change(mesh, workshop.instance(mesh, blocks), before, keeps)

    def _in_use_after(self, mesh: InstanceMesh) -> int | None:
        """Bytes of each device of a place that will be taken by parameters alone; None where devices do not say."""
        stats = mesh.submesh.devices[0].memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        shapes = self._host.deployment.workshop.shapes(mesh)
        leaves = (leaf for _, some in shapes.values() for leaf in some)
        return sum(_shard_bytes(leaf) for leaf in leaves)

    def _offload(self, changes: list[_Change], ends: list[str]) -> None:
        roles = self._host.roles

        def begin() -> None:
            for change in changes:
                if change.before is not None:
                    roles.offload(change.mesh.name, change.closing, keeps_kv=change.keeps_kv)
            for name in ends:
                roles.offload(name, self._host.deployment.instances[name].roles, keeps_kv=False)

        def evict() -> None:
            for name in names:
                roles.evict(name)

        names = [*ends, *(change.mesh.name for change in changes if change.before)]
        self._host.call(begin)
        began, evicted = time.monotonic(), False
        while not self._host.call(lambda: all(roles.is_evacuated(name) for name in names)):
            passed = time.monotonic() - began
            if passed > self._give_up_s:
                raise SwitchRefused(f"{', '.join(names)} could not be freed within {self._give_up_s:.0f} s")
            if passed > self._finish_s and not evicted:
                self._host.call(evict)
                evicted = True
            time.sleep(POLL_S)

    def _migrate(self, changes: list[_Change]) -> int:
        """Parameters and pools of the new instances; returns the bytes of parameters that came from elsewhere."""
        deployment, moved = self._host.deployment, 0
        for change in changes:
            before = change.before
            if before is not None and not change.keeps_kv:
                before.delete_pools()
            parts, here = self._parameters(change)
            moved += here
            blocks = change.shaped.spec.kv_blocks
            made = deployment.workshop.instance(change.mesh, blocks, parts)
            made.programs = change.shaped.programs
            if before is None or not change.keeps_kv:
                made.make_pools()
            elif not change.keeps_mm:
                made.make_mm_pool()
            jax.block_until_ready((made.pools, made.slots, made.mm_pool))
            change.made = made
        return moved

    def _parameters(self, change: _Change) -> tuple[Parts, int]:
        """Each part from the instances that have it, or from the checkpoint where no copy fits."""
        deployment = self._host.deployment
        parts: Parts = {}
        moved = 0
        for part, (split, shapes) in change.shaped.parts.items():
            owners = [i.parts[part][1] for i in self._instances().values() if part in i.parts]
            copies = zip(*owners) if owners else ((),) * len(shapes)
            leaves = gather_shards([(some, shape.sharding) for some, shape in zip(copies, shapes, strict=True)])
            mine = set(change.before.submesh.devices) if change.before and part in change.before.parts else set()
            if any(leaf is None for leaf in leaves):
                loaded = deployment.workshop.load([change.mesh])[change.mesh.name]
                leaves, mine = list(loaded[part][1]), set()
            new = len(set(change.mesh.submesh.devices) - mine)
            moved += sum(_shard_bytes(shape) for shape in shapes) * new
            parts[part] = (split, tuple(jax.block_until_ready(leaves)))
        return parts, moved

    def _onload(self, plan: SwitchPlan, changes: list[_Change], ends: list[str]) -> None:
        """On the engine's thread: from one work to the next everything is as planned."""
        deployment = self._host.deployment
        made = [change.made for change in changes if change.made is not None]
        for change in changes:
            if change.before is not None and change.made is not None:
                change.made.take_over(change.before, kv=change.keeps_kv, mm=change.keeps_mm)
        self._host.roles.go_over(ends, [instance.spec for instance in made])
        for name in ends:
            self._host.waiters.drop(name)
            del deployment.instances[name]
        deployment.instances.update({instance.name: instance for instance in made})
        deployment.places[:] = after_switch(deployment.places, plan)
        self._host.outages.came_back(plan.instance)
        if not missing(deployment.places):  # else a rescue is on its way
            self._host.give_up()  # only what fits nowhere any more; what was hopeless is not

    def _call_off(self, names: list[str]) -> None:
        """After a failure: the instances go on as they were, with new pools where the old ones are gone."""

        def restore() -> None:
            for name in names:
                instance = self._host.deployment.instances.get(name)
                if instance is not None:
                    self._host.roles.resume(name)
                    self._host.outages.recover(instance)

        try:
            self._host.call(restore)
        except EngineEnded:
            log.info("the engine ended during a switch")


class _Clock:
    """Laps of a stopwatch, seconds."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def lap(self) -> float:
        before, self._at = self._at, time.monotonic()
        return self._at - before


def _shard_bytes(leaf: Any) -> int:
    """Bytes of an array on each of its devices."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize
