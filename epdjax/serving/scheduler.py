"""The scheduler: a pure state machine that decides WHEN.

It is told of arrivals, aborts, finished and failed work, each with a time stamp, and answers with the work to start
now. It owns every queue and every block count; it reads no clock, starts no thread and touches no array. The live
engine runs its work on devices; a simulator can run the same object under a virtual clock.

The life of a request is in `request.State`. Wherever it is, `_retire` takes it out of every queue, and gives back
everything it holds as soon as no running work touches it.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Sequence

from epdjax.serving.admission import Queued, SchedulerConfig, check_fits, check_load, check_served, could_fit
from epdjax.serving.assigning import Assigner
from epdjax.serving.decoding import DecodeStage
from epdjax.serving.encoding import EncodeStage
from epdjax.serving.entering import EntryStage
from epdjax.serving.errors import InvalidRequest
from epdjax.serving.leaving import Departures
from epdjax.serving.ledger import IN_FLIGHT, InstanceSpec, Ledger
from epdjax.serving.metering import LoadMeter
from epdjax.serving.move_watch import Move, MoveWatch
from epdjax.serving.moving import KVMoves
from epdjax.serving.ordering import Ordering
from epdjax.serving.outputs import FinishReason
from epdjax.serving.prefilling import PrefillStage
from epdjax.serving.ranked import Ranked
from epdjax.serving.request import Request, RequestSpec, State
from epdjax.serving.role_changes import RoleChanges
from epdjax.serving.service_times import ServiceTimes
from epdjax.serving.work import Chunk, Decode, Encode, MoveKV, MoveMM, Prefill, Work, request_ids
from epdjax.serving.yielding import Yielding


@dataclasses.dataclass(frozen=True)
class Finished:
    """A request has left the scheduler."""

    request_id: str
    reason: FinishReason


MOST_FAILURES = 3  # of one request


class Scheduler:
    """See the module. Not thread-safe: one caller at a time."""

    def __init__(self, config: SchedulerConfig, instances: Sequence[InstanceSpec]):
        self.config = config
        # Instances that are like one another learn from one another how long work takes.
        self._times: dict[tuple, ServiceTimes] = collections.defaultdict(lambda: ServiceTimes(config.buckets))
        self.instances = {spec.name: self.ledger(spec) for spec in instances}
        self.requests: dict[str, Request] = {}
        self.leaving: dict[str, Request] = {}  # retired, but touched by running work
        self.queued = Queued()
        self.hopeless = False  # what is not served now will not be soon
        self._deadlines: Ranked[Request] = Ranked()
        self._ordering = Ordering(config.order, self.requests)
        self._assigner = Assigner(config.assignment, self.instances)
        self._numbers = itertools.count()
        self._running: dict[int, Work] = {}  # all work that was started and has not ended
        self.move_watch = MoveWatch()
        work_ids = itertools.count(1)
        self.encoding = EncodeStage(
            self.instances, functools.partial(self._assigner.choose, "E"), work_ids, self.queued, self.requests
        )
        self.moves = KVMoves(self.instances, functools.partial(self._assigner.choose, "D"), work_ids, self._adopt)
        self.entry = EntryStage(self._assigner, self.encoding, self.queued)
        self.roles = RoleChanges(self)
        self.departures = Departures(
            self.instances, self.entry, self.encoding, self.moves, self._adopt, self.roles.keeps_kv
        )
        self._prefilling = PrefillStage(work_ids, self.moves)
        self._decoding = DecodeStage(work_ids, self.departures.pause)
        self._yielding = Yielding(self.instances, self.moves, self.departures.pause, self.departures.send_back)
        self.meter = LoadMeter(self)

    def ledger(self, spec: InstanceSpec) -> Ledger:
        """The books of a new instance."""
        config = self.config
        times, pace = self.times_of(spec), config.decode_pace
        return Ledger(spec, config.buckets, config.block_size, config.mm_block_size, times, pace)

    def times_of(self, spec: InstanceSpec) -> ServiceTimes:
        """Service times of instances like this one."""
        return self._times[spec.roles, spec.encode_width, spec.tensor]

    # ---- what the scheduler is told -------------------------------------------------------------------------------

    def add(self, spec: RequestSpec, now: float) -> None:
        """A request arrives.

        Raises:
            TooLong: it could never fit, and which limit says so.
            Overloaded: a queue is full.
            InvalidRequest: its id is in use.
            ServiceUnavailable: a stage has no instance, and there is no way to give it one.
        """
        if spec.request_id in self.requests or spec.request_id in self.leaving:
            raise InvalidRequest(f"request id {spec.request_id!r} is already in use")
        if self.hopeless:
            check_served(spec, self.unserved)
        check_fits(spec, self.config, list(self.instances.values()))
        first = self.requests.get(spec.follows)
        if first is not None and first.to_follow:
            first.to_follow -= 1
            self.queued.expect(spec, -1)
        else:
            check_load(spec, self.config, len(self.requests), self.queued)
        number = next(self._numbers)
        request = Request(spec, now, self._ordering.ranks(spec, now, number), to_follow=spec.answers - 1)
        self.queued.expect(spec, request.to_follow)
        self.requests[spec.request_id] = request
        self.meter.arrived(request)
        self.queued.media_bytes += spec.media_bytes
        if request.deadline < math.inf:
            self._deadlines.add((request.deadline, number), request)
        self.entry.enter(request)

    def abort(self, request_id: str, now: float) -> bool:
        """End a request wherever it is. Returns whether it was live."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._retire(request)
        return True

    def preempt(self, request_id: str) -> None:
        """Take a sequence that is being decoded, or a prompt that shares an instance with such, out of its place: it
        goes on elsewhere, or later, with the same tokens. Others are left where they are."""
        request = self.requests.get(request_id)
        if request is None or request.pausing or request.d_name is None:
            return
        ledger = self.instances[request.d_name]
        if request_id in ledger.running or (request in ledger.prefill_queue and request.state is State.PREFILLING):
            self.departures.pause(request)

    def distrust(self, request_id: str) -> None:
        """What a request made of its media is not to be found by others."""
        spec = self.requests[request_id].spec
        for ledger in self.instances.values():
            for index in range(spec.units):
                ledger.pools["mm"].unpublish(spec.unit_key(index))

    def finished(self, work: Work, now: float, stopped: Collection[str] = ()) -> list[Finished]:
        """Work is done. `stopped` names requests whose token in this work ended their answer."""
        requests = self._land(work, now)
        ledger = self.instances[work.instance]
        ledger.watch.ended(work, now)
        self.meter.ended(work)
        done: list[Finished] = []
        match work:
            case Encode():
                self.encoding.encoded(work)
            case MoveMM():
                for waiting, index in self.encoding.landed(work):
                    self._unit_is_there(waiting, index)
            case Prefill():
                for chunk in work.chunks:
                    request = requests.get(chunk.request_id)
                    if request and request.state is not State.INTERRUPTED:
                        self._filled(request, ledger, chunk, now)
                        if chunk.is_last:
                            done += self._delivered(request, stopped)
            case MoveKV():
                for part in work.parts:
                    request = requests.get(part.request_id)
                    if request and part.is_last and request.state is not State.INTERRUPTED:
                        self.moves.arrived(request, now)
                        self._leave_source(request)
                        self._start_decoding(request)
            case Decode():
                for request in requests.values():
                    if request.state is not State.INTERRUPTED:
                        done += self._delivered(request, stopped)
        self.departures.let_go(requests.values())
        return done

    def failed(self, work: Work, now: float) -> list[Finished]:
        """Work raised: the requests in it start over, elsewhere if possible and by themselves; after `MOST_FAILURES`
        they end in an error. Others are not touched.

        So it is with a move that does not end. Its blocks are given back here and now, since what it brings is written
        into a pool only after somebody has looked whether it is running still (`is_running`)."""
        requests = self._land(work, now)
        ledger = self.instances[work.instance]
        ledger.watch.failed(work)
        if isinstance(work, (Encode, MoveMM)):
            requests |= self.encoding.failed(work)
        ledger.last_failed = frozenset(requests)
        done = []
        for request in requests.values():
            request.failures += 1
            request.suspect = True
            request.avoid.add(work.instance)
            if request.failures == MOST_FAILURES:
                done.append(self._fail(request))
            else:
                self.departures.send_back(request)
        return done

    def overdue(self, now: float) -> list[Finished]:
        """End the requests whose time is up."""
        done = []
        while self.next_deadline <= now:
            done.append(self._fail(self._deadlines.first))
        return done

    @property
    def next_deadline(self) -> float:
        """When the next request will be overdue; infinite where none has a limit."""
        return self._deadlines.first_key[0] if self._deadlines else math.inf

    def lost(self, instance: str) -> None:
        """The pools of an instance are gone: every request with something there starts over, its answer so far
        included."""
        for pool in ("kv", "mm"):
            self.instances[instance].pools[pool].forget()
        for request in list(self.requests.values()):
            if any(name == instance for name, _ in request.holdings):
                self.departures.send_back(request)

    def wants(self, request_id: str) -> bool:
        """Whether tokens of a request's running work count: not if it starts over, for a step before may have failed,
        and this one have run on what that did not leave."""
        request = self.requests.get(request_id)
        return request is not None and request.state is not State.INTERRUPTED

    @property
    def running(self) -> Collection[Work]:
        """All work that was started and has not ended."""
        return self._running.values()

    def is_running(self, work: Work) -> bool:
        """Whether work was started and nobody has said yet that it has ended, or that it never will."""
        return work.work_id in self._running

    def running_on(self, name: str) -> list[Work]:
        """Work that was started, has not ended, and has to do with an instance."""
        return [work for work in self._running.values() if name in (work.instance, getattr(work, "source", ""))]

    def void(self, work: Work, now: float) -> list[Request]:
        """Running work will never end; returns the requests that lose something with it. Nobody is to blame."""
        requests = self._land(work, now)
        self.instances[work.instance].watch.failed(work)
        if isinstance(work, (Encode, MoveMM)):
            requests |= self.encoding.failed(work)
        return list(requests.values())

    def add_instance(self, spec: InstanceSpec) -> None:
        """From now on there is one more."""
        self.instances[spec.name] = self.ledger(spec)

    def give_up(self) -> list[Finished]:
        """End the requests that no instance there is now could ever hold."""
        return [
            self._fail(request)
            for request in list(self.requests.values())
            if not could_fit(request.spec, self.instances.values())
        ]

    @property
    def deadlines(self) -> int:
        """Requests with a time limit."""
        return len(self._deadlines)

    @property
    def preemptions(self) -> int:
        """Sequences and prompts that were taken out of their place to make room."""
        return self.departures.preemptions

    @property
    def unserved(self) -> str:
        """The roles that no instance performs."""
        ledgers = list(self.instances.values())  # other threads may ask
        return "".join(role for role in "EPD" if not any(ledger.performs(role) for ledger in ledgers))

    # ---- what the scheduler answers -------------------------------------------------------------------------------

    def next_work(self, now: float) -> list[Work]:
        """The work to start now, in the order to start it."""
        works: list[Work] = []
        preemptions = -1
        while preemptions != self.departures.preemptions:  # what was preempted may go on at once, elsewhere
            preemptions = self.departures.preemptions
            self.roles.evacuate()
            self.encoding.find_homes()
            self.entry.admit()
            if self._ordering.decodes_fairly:
                self._yielding.make_room()
            works += [self._begin(work, now) for work in self.encoding.moves()]
            works += [self._begin(work, now) for work in self.moves.next_moves()]
            for ledger in self.instances.values():
                while len(ledger.in_flight) < IN_FLIGHT and ledger.probed_since == math.inf:
                    work = self._one_for(ledger)
                    if work is None:
                        break
                    works.append(self._begin(work, now))
        return works

    def overdue_moves(self, now: float, limit_s: float) -> list[Move]:
        """The moves that have been under way for longer than `limit_s`."""
        return self.move_watch.overdue(now, limit_s)

    def is_staged(self, encode_id: int) -> bool:
        """Whether the result of an encode is still to be moved somewhere."""
        return encode_id in self.encoding.staging

    @property
    def idle(self) -> bool:
        """No request, and no work running."""
        running = any(ledger.in_flight or len(ledger.arrivals) for ledger in self.instances.values())
        return not (self.requests or self.leaving or running)

    def renew_books(self) -> None:
        """Begin with empty pools and queues, as if nothing had ever been served: the books of an idle scheduler do not
        balance. What was cached is not found any more."""
        assert not self.requests, "only an idle scheduler may forget what there is"
        self.leaving.clear()
        self._running.clear()
        self._deadlines = Ranked()
        self.move_watch.clear()
        self.queued.clear()
        self.entry.renew()
        self.encoding.renew()
        self.moves.renew()
        for ledger in self.instances.values():
            ledger.renew()

    def counts(self) -> dict[str, int]:
        """Live requests by state."""
        states = [request.state.value for request in list(self.requests.values())]  # other threads may ask
        return dict(collections.Counter(states))

    # ---- making work ----------------------------------------------------------------------------------------------

    def _begin(self, work: Work, now: float) -> Work:
        ledger = self.instances[work.instance]
        self._running[work.work_id] = work
        if isinstance(work, MoveKV):
            self.moves.began(work, now)
            self.move_watch.began(work, self.instances[work.source].in_flight, now)
        elif isinstance(work, MoveMM):
            self.move_watch.began(work, (), now)  # a result that is there already
        else:  # moves occupy links, not the instance's compute
            ledger.in_flight[work.work_id] = work
            ledger.watch.began(work, now)
        for request_id in request_ids(work):
            self.requests[request_id].in_flight += 1
        self._ordering.began(work)
        return work

    def _one_for(self, ledger: Ledger) -> Work | None:
        make: dict[str, Callable[[Ledger], Work | None]] = {
            "E": self.encoding.next_step,
            "P": self._prefilling.next_step,
            "D": self._decoding.next_step,
        }
        for role in ledger.next_roles():
            work = make[role](ledger)
            if work is not None:
                ledger.took_turn(role)
                return work
        return None

    # ---- what follows from finished work --------------------------------------------------------------------------

    def _land(self, work: Work, now: float) -> dict[str, Request]:
        """Take work out of flight; returns its requests that are still live."""
        del self._running[work.work_id]
        self.move_watch.ended(work.work_id, now)
        self.instances[work.instance].in_flight.pop(work.work_id, None)
        if isinstance(work, MoveKV):
            self.moves.ended(work, now)
        live = {}
        for request_id in request_ids(work):
            left = self.leaving.get(request_id)
            if left is None:
                request = live[request_id] = self.requests[request_id]
                request.in_flight -= 1
                continue
            left.in_flight -= 1
            if left.in_flight == 0:
                self.departures.give_back_all(left)
                del self.leaving[request_id]
        return live

    def _unit_is_there(self, request: Request, index: int) -> None:
        request.missing.discard(index)
        if request.p_name is not None:
            self.instances[request.p_name].prefill_queue.update(request)
        if not request.missing and request.state is State.ENCODING:
            request.state = State.PREFILL_QUEUED  # it is in the queue already

    def _filled(self, request: Request, ledger: Ledger, chunk: Chunk, now: float) -> None:
        """KV of prompt tokens is in place: it can be shared, and moved on while the rest is run."""
        request.filled, request.filled_at = chunk.start + chunk.length, now
        ledger.publish_kv(request, chunk.start, request.filled)
        if request.d_name != ledger.name:
            self.moves.enter(request, ledger)
        if chunk.is_last:
            self._prefilled(request)

    def _prefilled(self, request: Request) -> None:
        """The prompt is in the KV pool and the next token sampled."""
        assert request.p_name is not None
        ledger = self.instances[request.p_name]
        ledger.give_back("mm", request)
        ledger.release_prompt(request)
        if request.d_name == ledger.name:
            self._start_decoding(request)
        else:
            request.state = State.MOVE_QUEUED

    def _adopt(self, request: Request, ledger: Ledger) -> None:
        """A sequence is decoded where its KV is: the instance has come to decode meanwhile."""
        request.kv_source = ""
        ledger.assign_sequence(request)
        self._start_decoding(request)

    def _leave_source(self, request: Request) -> None:
        """Its KV has arrived elsewhere."""
        for pool in ("kv", "slot"):
            self.instances[request.kv_source].give_back(pool, request)
        request.kv_source = ""

    def _start_decoding(self, request: Request) -> None:
        assert request.d_name is not None
        request.state = State.DECODING
        self.instances[request.d_name].running[request.request_id] = request

    def _delivered(self, request: Request, stopped: Collection[str]) -> list[Finished]:
        request.delivered += 1
        request.suspect = False
        if request.request_id in stopped:
            reason: FinishReason = "stop"
        elif request.delivered == request.spec.max_tokens:
            reason = "length"
        else:
            return []
        self.meter.answered(request)
        self._retire(request)
        return [Finished(request.request_id, reason)]

    # ---- leaving --------------------------------------------------------------------------------------------------

    def _fail(self, request: Request) -> Finished:
        self._retire(request)
        return Finished(request.request_id, "error")

    def _retire(self, request: Request) -> None:
        """Take a request out of every queue, and give back what it holds once no running work touches it."""
        del self.requests[request.request_id]
        if request.deadline < math.inf:
            self._deadlines.pop((request.deadline, request.number))
        self.queued.media_bytes -= request.spec.media_bytes
        self.queued.expect(request.spec, -request.to_follow)
        request.to_follow = 0
        self.departures.leave_queues(request)
        if request.in_flight:
            self.leaving[request.request_id] = request
        else:
            self.departures.give_back_all(request)
        request.state = State.FINISHED
