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
from collections.abc import Callable, Collection, Iterable, Sequence

from epdjax.serving.admission import Queued, SchedulerConfig, check_fits, check_load
from epdjax.serving.blocks import blocks_for
from epdjax.serving.encoding import EncodeStage
from epdjax.serving.errors import InvalidRequest
from epdjax.serving.ledger import IN_FLIGHT, InstanceSpec, Ledger
from epdjax.serving.outputs import FinishReason
from epdjax.serving.policies import ASSIGNMENTS, ORDERS
from epdjax.serving.request import Request, RequestSpec, State
from epdjax.serving.work import Chunk, Decode, Encode, MoveKV, MoveMM, Prefill, Work, request_ids
from epdjax.serving.work import Sequence as Row


@dataclasses.dataclass(frozen=True)
class Finished:
    """A request has left the scheduler."""

    request_id: str
    reason: FinishReason


class Scheduler:
    """See the module. Not thread-safe: one caller at a time."""

    def __init__(self, config: SchedulerConfig, instances: Sequence[InstanceSpec]):
        self.config = config
        self.instances = {
            spec.name: Ledger(spec, config.buckets, config.block_size, config.mm_block_size) for spec in instances
        }
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []  # have media, no instance yet
        self.move_queue: list[Request] = []  # prefilled, wait for a D instance
        self.leaving: dict[str, Request] = {}  # retired, but touched by running work
        self._key = ORDERS[config.order]
        self._assign = {role: ASSIGNMENTS[config.assignment]() for role in "EPD"}
        self._work_ids = itertools.count(1)
        self._orders = itertools.count()
        self.queued = Queued()
        self.encoding = EncodeStage(self.instances, functools.partial(self._choose, "E"), self._work_ids, self.queued)

    # ---- what the scheduler is told -------------------------------------------------------------------------------

    def add(self, spec: RequestSpec, now: float) -> None:
        """A request arrives.

        Raises:
            TooLong: it could never fit, and which limit says so.
            Overloaded: a queue is full.
            InvalidRequest: its id is in use.
        """
        if spec.request_id in self.requests or spec.request_id in self.leaving:
            raise InvalidRequest(f"request id {spec.request_id!r} is already in use")
        check_fits(spec, self.config, list(self.instances.values()))
        check_load(spec, self.config, len(self.requests), self.queued)
        request = Request(spec, arrived=now, order=next(self._orders))
        self.requests[spec.request_id] = request
        self.queued.units += len(spec.unit_tokens)
        self.queued.media_bytes += spec.media_bytes
        if spec.unit_tokens:
            self.waiting.append(request)
        else:
            fitting = [p for p in self._with_role("P") if p.could_prefill(spec)]
            self._assign_prefill(request, self._choose("P", fitting))
            self._queue_prefill(request)

    def abort(self, request_id: str, now: float) -> bool:
        """End a request wherever it is. Returns whether it was live."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._retire(request)
        return True

    def finished(self, work: Work, now: float, stopped: Collection[str] = ()) -> list[Finished]:
        """Work is done. `stopped` names requests whose token in this work ended their answer."""
        requests = self._land(work)
        done: list[Finished] = []
        match work:
            case Encode():
                self.encoding.encoded(work)
            case MoveMM():
                for waiting, index in self.encoding.landed(work):
                    self._unit_is_there(waiting, index)
            case Prefill():
                for chunk in work.chunks:
                    if request := requests.get(chunk.request_id):
                        self.instances[work.instance].publish_kv(request, chunk.start, chunk.start + chunk.length)
                        if chunk.is_last:
                            self._prefilled(request)
                            done += self._delivered(request, stopped)
            case MoveKV():
                for request in requests.values():
                    self._leave_prefill(request)
                    self._start_decoding(request)
            case Decode():
                for request in requests.values():
                    done += self._delivered(request, stopped)
        return done

    def failed(self, work: Work, now: float) -> list[Finished]:
        """Work raised: the requests in it end in an error, and nothing else is touched."""
        requests = self._land(work)
        if isinstance(work, (Encode, MoveMM)):
            requests |= self.encoding.failed(work)
        return [self._fail(request) for request in requests.values()]

    def lost(self, instance: str, now: float) -> list[Finished]:
        """The pools of an instance are gone: every request with something on it ends in an error."""
        for pool in ("kv", "mm"):
            self.instances[instance].pools[pool].forget()
        affected = [
            request for request in self.requests.values() if any(name == instance for name, _ in request.holdings)
        ]
        return [self._fail(request) for request in affected]

    # ---- what the scheduler answers -------------------------------------------------------------------------------

    def next_work(self, now: float) -> list[Work]:
        """The work to start now, in the order to start it."""
        self._admit()
        works: list[Work] = [self._begin(work) for work in self.encoding.moves()]
        works += [self._begin(work) for work in self._moves_kv()]
        for ledger in self.instances.values():
            while len(ledger.in_flight) < IN_FLIGHT:
                work = self._one_for(ledger)
                if work is None:
                    break
                works.append(self._begin(work))
        return works

    def is_staged(self, encode_id: int) -> bool:
        """Whether the result of an encode is still to be moved somewhere."""
        return encode_id in self.encoding.staging

    @property
    def idle(self) -> bool:
        """No request, and no work running."""
        running = any(ledger.in_flight or len(ledger.arrivals) for ledger in self.instances.values())
        return not (self.requests or self.leaving or running)

    def counts(self) -> dict[str, int]:
        """Live requests by state."""
        states = [request.state.value for request in list(self.requests.values())]  # other threads may ask
        return dict(collections.Counter(states))

    # ---- admission ------------------------------------------------------------------------------------------------

    def _with_role(self, role: str) -> list[Ledger]:
        return [ledger for ledger in self.instances.values() if ledger.performs(role)]

    def _choose(self, role: str, ledgers: Sequence[Ledger]) -> Ledger:
        loads: dict[str, Callable[[Ledger], float]] = {
            "E": lambda ledger: ledger.encode_load,
            "P": lambda ledger: ledger.prompt_tokens,
            "D": lambda ledger: ledger.sequences,
        }
        names = [ledger.name for ledger in ledgers]
        return self.instances[self._assign[role].choose(names, lambda name: loads[role](self.instances[name]))]

    def _admit(self) -> None:
        """Give waiting requests a P instance with room for all their MM tokens, and queue their units for encoding.

        The instance is chosen now, so that all units of a request meet there. Nobody overtakes: a request that finds
        no room holds back those behind it, until running ones make room.
        """
        self.waiting.sort(key=self._key)
        while self.waiting:
            request = self.waiting[0]
            fitting = [p for p in self._with_role("P") if p.could_prefill(request.spec)]
            roomy = [p for p in fitting if p.pools["mm"].available >= p.mm_need(request.spec)]
            # Where nobody has room for everything, what is there already may make the difference.
            ledger = self._choose("P", roomy or fitting)
            to_encode = ledger.reserve_mm(request)
            if to_encode is None:
                return
            del self.waiting[0]
            self._assign_prefill(request, ledger)
            request.state = State.ENCODING
            self.queued.units -= len(request.spec.unit_tokens) - len(to_encode)
            self.encoding.queue(request, ledger, to_encode)
            if request.missing:
                ledger.prefill_queue.append(request)
            else:
                self._all_units_there(request)
                self._queue_prefill(request)

    def _assign_prefill(self, request: Request, ledger: Ledger) -> None:
        request.p_name = ledger.name
        ledger.prompt_tokens += request.spec.prompt_tokens

    def _unit_is_there(self, request: Request, index: int) -> None:
        request.missing.discard(index)
        if not request.missing:
            self._all_units_there(request)
            if request.state is State.ENCODING:
                request.state = State.PREFILL_QUEUED  # it is in the queue already

    def _all_units_there(self, request: Request) -> None:
        self.queued.media_bytes -= request.spec.media_bytes

    def _queue_prefill(self, request: Request) -> None:
        request.state = State.PREFILL_QUEUED
        assert request.p_name is not None
        self.instances[request.p_name].prefill_queue.append(request)

    # ---- making work ----------------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> Work:
        if not isinstance(work, (MoveMM, MoveKV)):  # moves occupy links, not the instance's compute
            self.instances[work.instance].in_flight[work.work_id] = work
        for request_id in request_ids(work):
            self.requests[request_id].in_flight += 1
        return work

    def _one_for(self, ledger: Ledger) -> Work | None:
        make: dict[str, Callable[[Ledger], Work | None]] = {
            "E": self.encoding.next_step,
            "P": self._prefill,
            "D": self._decode,
        }
        for role in ledger.next_roles():
            work = make[role](ledger)
            if work is not None:
                ledger.took_turn(role)
                return work
        return None

    def _prefill(self, ledger: Ledger) -> Work | None:
        """Pack the heads of the queue into one step: what was begun goes on first, then in order of the policy."""
        ledger.prefill_queue.sort(key=lambda r: (r.prefilled == 0, *self._key(r)))
        chunks: list[Chunk] = []
        longest = 0
        for request in list(ledger.prefill_queue):
            length = self._chunk_length(ledger, request)
            if length == 0:
                continue  # its next MM tokens are still on their way
            if ledger.buckets.prefill_for(len(chunks) + 1, max(longest, length)) is None:
                break
            if request.state is not State.PREFILLING:
                if not self._start_prefill(ledger, request):
                    break
                length = self._chunk_length(ledger, request)  # some of it may have been found in the cache
                if length == 0:
                    continue
            longest = max(longest, length)
            chunks.append(self._chunk(ledger, request, length))
        return Prefill(next(self._work_ids), ledger.name, tuple(chunks)) if chunks else None

    def _chunk_length(self, ledger: Ledger, request: Request) -> int:
        """Tokens of a request's next chunk; 0 while it waits for MM tokens.

        Encoding and prefill of one request overlap: a chunk may start when the MM tokens it needs are there, though
        only a full one, since the rest of a short one would take a step of its own.
        """
        start, most = request.prefilled, ledger.buckets.max_chunk
        end = request.spec.not_inside(min(start + most, request.ready))
        if request.missing and end < request.spec.not_inside(start + most):
            return 0
        return max(0, end - start)

    def _start_prefill(self, ledger: Ledger, request: Request) -> bool:
        """Take KV blocks and a slot for a prompt; False where there is no room yet."""
        stays = ledger.performs("D")
        if stays and self.move_queue and min(r.order for r in self.move_queue) < request.order:
            return False  # an older sequence waits for this kind of room
        if not ledger.reserve_kv(request, decoded_here=stays):
            return False
        request.state = State.PREFILLING
        if stays:
            request.d_name = ledger.name
            ledger.sequences += 1
        return True

    def _chunk(self, ledger: Ledger, request: Request, length: int) -> Chunk:
        start = request.prefilled
        request.prefilled += length
        is_last = request.prefilled == request.spec.prompt_tokens
        if is_last:
            ledger.prefill_queue.remove(request)
            request.scheduled = 1
        mm_blocks = tuple(request.mm_blocks[i] for i in range(len(request.spec.unit_tokens)))
        return Chunk(
            request.request_id,
            start,
            length,
            is_last,
            request.slot(ledger.name),
            request.kv_blocks(ledger.name),
            mm_blocks,
            request.cached,
        )

    def _moves_kv(self) -> Iterable[Work]:
        """Start moving prefilled sequences, oldest first, to D instances with room for their longest answer."""
        self.move_queue.sort(key=self._key)
        while self.move_queue:
            request = self.move_queue[0]
            roomy = [d for d in self._with_role("D") if d.has_turn(request)]
            if not roomy:
                return
            del self.move_queue[0]
            source, target = self.instances[request.p_name or ""], self._choose("D", roomy)
            blocks = target.take("kv", target.kv_need(request.spec, decoded_here=True), request)
            slot = target.take("slot", 1, request)
            assert blocks is not None and slot is not None
            request.d_name = target.name
            request.state = State.MOVING_KV
            target.sequences += 1
            filled = blocks_for(request.spec.prompt_tokens, self.config.block_size)
            yield MoveKV(
                next(self._work_ids),
                source.name,
                target.name,
                request.request_id,
                request.kv_blocks(source.name)[:filled],
                blocks[:filled],
                request.slot(source.name),
                slot[0],
            )

    def _decode(self, ledger: Ledger) -> Work | None:
        rows: list[Row] = []
        for request in ledger.running.values():
            if request.scheduled == request.spec.max_tokens or len(rows) == ledger.buckets.decode_rows[-1]:
                continue
            position = request.spec.prompt_tokens + request.scheduled - 1  # of the token that is run
            blocks = request.kv_blocks(ledger.name)[: position // ledger.block_size + 1]
            rows.append(Row(request.request_id, request.slot(ledger.name), position, blocks))
        if not rows:
            return None
        for row in rows:
            self.requests[row.request_id].scheduled += 1
        return Decode(next(self._work_ids), ledger.name, tuple(rows))

    # ---- what follows from finished work --------------------------------------------------------------------------

    def _land(self, work: Work) -> dict[str, Request]:
        """Take work out of flight; returns its requests that are still live."""
        self.instances[work.instance].in_flight.pop(work.work_id, None)
        live = {}
        for request_id in request_ids(work):
            left = self.leaving.get(request_id)
            if left is None:
                request = live[request_id] = self.requests[request_id]
                request.in_flight -= 1
                continue
            left.in_flight -= 1
            if left.in_flight == 0:
                self._give_back_all(left)
                del self.leaving[request_id]
        return live

    def _prefilled(self, request: Request) -> None:
        """The prompt is in the KV pool and the first token sampled."""
        assert request.p_name is not None
        ledger = self.instances[request.p_name]
        ledger.give_back("mm", request)
        ledger.prompt_tokens -= request.spec.prompt_tokens
        if ledger.performs("D"):
            self._start_decoding(request)
        else:
            request.state = State.MOVE_QUEUED
            self.move_queue.append(request)

    def _leave_prefill(self, request: Request) -> None:
        assert request.p_name is not None
        for pool in ("kv", "slot"):
            self.instances[request.p_name].give_back(pool, request)

    def _start_decoding(self, request: Request) -> None:
        assert request.d_name is not None
        request.state = State.DECODING
        self.instances[request.d_name].running[request.request_id] = request

    def _delivered(self, request: Request, stopped: Collection[str]) -> list[Finished]:
        request.delivered += 1
        if request.request_id in stopped:
            reason: FinishReason = "stop"
        elif request.delivered == request.spec.max_tokens:
            reason = "length"
        else:
            return []
        self._retire(request)
        return [Finished(request.request_id, reason)]

    # ---- leaving --------------------------------------------------------------------------------------------------

    def _fail(self, request: Request) -> Finished:
        self._retire(request)
        return Finished(request.request_id, "error")

    def _retire(self, request: Request) -> None:
        """Take a request out of every queue, and give back what it holds once no running work touches it."""
        del self.requests[request.request_id]
        if request.missing or request.state is State.WAITING:
            self.queued.media_bytes -= request.spec.media_bytes
        if request.state is State.WAITING:
            self.queued.units -= len(request.spec.unit_tokens)
        for queue in (self.waiting, self.move_queue):
            if request in queue:
                queue.remove(request)
        if request.p_name is not None:
            self._leave_instance(request, self.instances[request.p_name])
        if request.d_name is not None:
            ledger = self.instances[request.d_name]
            ledger.sequences -= 1
            ledger.running.pop(request.request_id, None)
        if request.in_flight:
            self.leaving[request.request_id] = request
        else:
            self._give_back_all(request)
        request.state = State.FINISHED

    def _leave_instance(self, request: Request, ledger: Ledger) -> None:
        if request.state in (State.ENCODING, State.PREFILL_QUEUED, State.PREFILLING):
            ledger.prompt_tokens -= request.spec.prompt_tokens
        if request in ledger.prefill_queue:
            ledger.prefill_queue.remove(request)
        if request.missing:
            self.encoding.leave(request, ledger)

    def _give_back_all(self, request: Request) -> None:
        for name, pool in list(request.holdings):
            self.instances[name].give_back(pool, request)
