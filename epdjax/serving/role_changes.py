"""Instances change roles while requests are served: the scheduler's side of it, pure like the rest.

A change has three steps (EPD paper, role switching). *Offload*: the instance gets nothing new for the roles it gives
up; what is queued there goes to others at once, sequences being decoded move to others as these have room, and what has
been begun is finished. *Migrate* is the engine's. *Onload*: the instance has its new roles. Roles that it has before
and after go on all the while.

Between P and D the KV pool stays, and what is in it: a sequence prefilled there is decoded there if it has not been
moved yet, and one that was decoded there waits there for room elsewhere.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from epdjax.serving.admission import could_fit
from epdjax.serving.ledger import InstanceSpec, Ledger
from epdjax.serving.request import Request, State
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work, request_ids

if TYPE_CHECKING:
    from epdjax.serving.scheduler import Scheduler

MOST_FAILED_PROBES = 3  # in a row
BEFORE_DECODE = (State.ENCODING, State.PREFILL_QUEUED, State.PREFILLING)


class RoleChanges:
    """See the module.

    Args:
        scheduler: whose instances change.
    """

    def __init__(self, scheduler: "Scheduler"):
        self._scheduler, self._instances = scheduler, scheduler.instances
        self._keeping: set[str] = set()

    # ---- offload --------------------------------------------------------------------------------------------------

    def offload(self, name: str, roles: str, *, keeps_kv: bool) -> None:
        """An instance begins to give up roles, perhaps none.

        Args:
            roles: the ones it gives up.
            keeps_kv: it goes on with the KV that it has.
        """
        ledger = self._instances[name]
        ledger.closing = roles
        if keeps_kv:
            self._keeping.add(name)
        if "E" in roles:
            self._scheduler.encoding.leave_encoder(ledger)
        for request in list(self._scheduler.requests.values()):
            if "P" in roles and _prefills(request, name) and not self._finishes_here(request):
                self._scheduler.departures.send_back(request)
            elif "D" in roles and request.d_name == name:
                self._choose_again(request, ledger)

    def evict(self, name: str) -> None:
        """The time for finishing is over: what is still there for the roles given up goes at once."""
        ledger = self._instances[name]
        ledger.evicting = True
        for request in list(self._scheduler.requests.values()):
            waits = request.state is State.MOVE_QUEUED and request.kv_source == name and name not in self._keeping
            if waits or ("P" in ledger.closing and _prefills(request, name)):
                self._scheduler.departures.send_back(request)

    def evacuate(self) -> None:
        """Send on sequences that are being decoded on instances that give this up, as others have room for them."""
        for ledger in self._instances.values():
            if "D" not in ledger.closing:
                continue
            for request in sorted(ledger.decodes.values(), key=lambda r: r.number):
                if request.request_id not in ledger.running:
                    self._choose_again(request, ledger)
            for request in list(ledger.running.values()):
                if not request.all_scheduled and (ledger.evicting or self._has_room_elsewhere(request, ledger)):
                    self._scheduler.departures.pause(request, returns=not ledger.evicting)

    def is_evacuated(self, name: str) -> bool:
        """Whether nothing is left on an instance of the roles it gives up."""
        ledger, scheduler = self._instances[name], self._scheduler
        works = (work for work in scheduler.running_on(name))
        if any(self._concerns(work, ledger) for work in works):
            return False
        if "E" in ledger.closing and (ledger.encode_queue or scheduler.encoding.staging.held_by(name)):
            return False
        if "P" in ledger.closing and len(ledger.arrivals):
            return False
        return not self._requests_in_the_way(ledger)

    def keeps_kv(self, ledger: Ledger) -> bool:
        """Whether sequences that are not decoded here any more may wait here for room elsewhere. Not where others are
        decoded on: they need the room."""
        return ledger.name in self._keeping and ledger.evicting and "D" in ledger.closing

    def could_serve(self, specs: Iterable[InstanceSpec]) -> bool:
        """Whether all live requests would find instances that could hold them among these."""
        ledgers = [self._scheduler.ledger(spec) for spec in specs]
        return all(could_fit(request.spec, ledgers) for request in self._scheduler.requests.values())

    # ---- onload ---------------------------------------------------------------------------------------------------

    def onload(self, spec: InstanceSpec) -> None:
        """An instance has its new roles. It must be evacuated."""
        ledger = self._instances[spec.name]
        ledger.become(spec, self._scheduler.times_of(spec), keeps_kv=spec.name in self._keeping)
        self._keeping.discard(spec.name)
        if "D" in spec.roles:
            self.spread()

    def spread(self) -> None:
        """Share the sequences that are being decoded out among the instances that decode, now that there is one more:
        those that go last in the fullest move to where there is room."""
        decoders = [ledger for ledger in self._instances.values() if ledger.takes("D")]
        fair = -(-sum(len(ledger.running) for ledger in decoders) // max(1, len(decoders)))
        for ledger in decoders:
            going = sorted(ledger.running.values(), key=lambda r: r.ranks["D"])[fair:]
            for request in going:
                if not request.all_scheduled:
                    self._scheduler.departures.pause(request, returns=True)

    def resume(self, name: str) -> None:
        """The change is called off: the instance goes on as before."""
        ledger = self._instances[name]
        ledger.closing, ledger.evicting = "", False
        self._keeping.discard(name)

    def enter(self, spec: InstanceSpec) -> None:
        """A new instance."""
        assert spec.name not in self._instances, f"{spec.name} exists"
        self._scheduler.add_instance(spec)
        if "D" in spec.roles:
            self.spread()

    def leave(self, name: str) -> None:
        """An instance that has been evacuated of all its roles is no more."""
        del self._instances[name]
        self._keeping.discard(name)

    def go_over(self, ends: Iterable[str], specs: Iterable[InstanceSpec]) -> None:
        """The last step of a switch: some instances are no more, others are there with their new roles from now on."""
        for name in ends:
            self.leave(name)
        for spec in specs:
            (self.onload if spec.name in self._instances else self.enter)(spec)

    # ---- failure --------------------------------------------------------------------------------------------------

    def take_out(self, name: str, now: float) -> None:
        """An instance is gone, with all that was there or under way to or from it. Its requests go on elsewhere from
        the last stage whose result is not lost."""
        scheduler, ledger = self._scheduler, self._instances[name]
        ledger.closing = ledger.spec.roles
        self._keeping.discard(name)
        for work in scheduler.running_on(name):
            lost = scheduler.void(work, now)
            if not (isinstance(work, MoveKV) and work.instance == name):  # then it is whole where it came from
                for request in lost:
                    scheduler.departures.send_back(request)
        for request in scheduler.encoding.lost(ledger).values():
            scheduler.departures.send_back(request)
        scheduler.encoding.leave_encoder(ledger)
        for request in [*scheduler.requests.values(), *scheduler.leaving.values()]:
            there = any(holder == name for holder, _ in request.holdings)
            if request.d_name == name and name not in (request.kv_source, request.p_name) and request.kv_source:
                scheduler.moves.choose_again(request)
            elif request.state is not State.FINISHED and (there or name in (request.p_name, request.d_name)):
                scheduler.departures.send_back(request)
            for pool in ("kv", "slot", "mm"):
                ledger.give_back(pool, request)
        del self._instances[name]

    @property
    def failing(self) -> list[str]:
        """Instances on which steps without any request have failed, one after the other."""
        return [ledger.name for ledger in self._instances.values() if ledger.failed_probes >= MOST_FAILED_PROBES]

    def begin_probe(self, name: str, now: float) -> bool:
        """Something has failed on an instance: it is given nothing until it is known whether everything does. Returns
        whether it is not being probed already."""
        ledger = self._instances[name]
        first, ledger.probed_since = ledger.probed_since == math.inf, now
        return first

    def end_probe(self, name: str, *, well: bool) -> None:
        """What came of a step on nothing but padding: where that fails too, no request is to blame."""
        ledger = self._instances[name]
        ledger.probed_since = math.inf
        ledger.failed_probes = 0 if well else ledger.failed_probes + 1

    def hanging(self, now: float, limit_s: float) -> list[str]:
        """Instances whose oldest step has been running for longer than `limit_s`."""
        return [ledger.name for ledger in self._instances.values() if now - ledger.since > limit_s]

    def next_alarm(self, limit_s: float) -> float:
        """When the first of the steps that are running now will have taken so long; infinite where none is."""
        return min((ledger.since for ledger in self._instances.values()), default=math.inf) + limit_s

    # ---- what is left on an instance ------------------------------------------------------------------------------

    def _finishes_here(self, request: Request) -> bool:
        """Whether a prompt that is not prefilled yet stays: it was begun, or all its MM tokens are there or soon will
        be, and would have to be made again elsewhere."""
        if request.state is State.PREFILLING:
            return True
        return request.spec.units > 0 and not self._scheduler.encoding.is_queued(request)

    def _choose_again(self, request: Request, ledger: Ledger) -> None:
        """A sequence that was to be decoded on an instance which gives this up finds another."""
        if request.request_id in ledger.running or request.pausing:
            return
        if _prefills(request, ledger.name):  # prefilled here: its KV stays
            ledger.release_sequence(request)
        elif request.kv_source and request.kv_source != ledger.name and not self._scheduler.moves.on_the_way(request):
            self._scheduler.moves.choose_again(request)

    def _has_room_elsewhere(self, request: Request, ledger: Ledger) -> bool:
        going = [r for r in ledger.decodes.values() if r.pausing]
        blocks = sum(ledger.start_blocks(r) for r in going)
        return any(
            d.has_turn(request)
            and d.pools["kv"].available >= d.start_blocks(request) + blocks + len(d.running)
            and d.pools["slot"].available > len(going)
            for d in self._instances.values()
            if d is not ledger and d.takes("D")
        )

    def _requests_in_the_way(self, ledger: Ledger) -> bool:
        """Whether requests keep an instance from giving up roles."""
        closing, pools = ledger.closing, ledger.pools
        if ("P" in closing and ledger.prompts) or ("D" in closing and ledger.decodes):
            return True
        if closing and any(self._still_writes(request, ledger.name) for request in self._touched()):
            return True
        mm = pools["mm"].users - ledger.arrivals.holds  # what requests hold
        if set("PD") & set(closing) and ledger.name not in self._keeping:
            return bool(pools["kv"].users or pools["slot"].users or mm)
        return "P" in closing and bool(mm)

    def _touched(self) -> list[Request]:
        """The requests that running work touches."""
        scheduler = self._scheduler
        names = {name for work in scheduler.running for name in request_ids(work)}
        found = (scheduler.requests.get(name) or scheduler.leaving.get(name) for name in names)
        return [request for request in found if request is not None]

    @staticmethod
    def _still_writes(request: Request, name: str) -> bool:
        """Whether a request that has left its place holds something on an instance until its work has ended."""
        gone = request.state in (State.INTERRUPTED, State.FINISHED)
        return gone and any(holder == name for holder, _ in request.holdings)

    def _concerns(self, work: Work, ledger: Ledger) -> bool:
        """Whether running work keeps an instance from giving up roles."""
        closing, keeps = ledger.closing, ledger.name in self._keeping
        match work:
            case Encode():
                return "E" in closing
            case Prefill():
                return "P" in closing
            case Decode():
                return "D" in closing
            case MoveMM():
                return ("E" if work.source == ledger.name else "P") in closing
            case MoveKV():
                return bool(set("PD") & set(closing)) and (not keeps or work.instance == ledger.name)


def _prefills(request: Request, name: str) -> bool:
    return request.p_name == name and request.state in BEFORE_DECODE
