"""The encode stage of the scheduler: from the units of a request to MM tokens on its P instance.

It owns the encode queues, the staging of encode results and the moves of MM tokens that follow from them.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from epdjax.serving.admission import Queued
from epdjax.serving.ledger import Ledger
from epdjax.serving.request import Request
from epdjax.serving.staging import Staging
from epdjax.serving.unit_queue import UnitQueue
from epdjax.serving.work import Encode, MoveMM, Unit, UnitMove


class EncodeStage:
    """See the module.

    Args:
        instances: all ledgers.
        choose: which of several encoders gets the next unit.
        work_ids: numbers for new work.
        queued: what waits to be encoded, counted for admission.
        requests: all live requests.
    """

    def __init__(
        self,
        instances: Mapping[str, Ledger],
        choose: Callable[[Request, Sequence[Ledger]], Ledger],
        work_ids: Iterator[int],
        queued: Queued,
        requests: Mapping[str, Request],
    ):
        self._instances, self._choose, self._work_ids, self._queued = instances, choose, work_ids, queued
        self._requests = requests
        self.homeless = UnitQueue(ranked=False)  # while no instance encodes
        self.staging = Staging()
        self.ready: collections.deque[MoveMM] = collections.deque()  # moves that follow from finished encodes
        self.units_encoded = 0

    def renew(self) -> None:
        """Nothing is queued, staged or to be moved."""
        self.homeless, self.staging = UnitQueue(ranked=False), Staging()
        self.ready.clear()

    def queue(self, request: Request, prefiller: Ledger, indices: Sequence[int]) -> None:
        """Queue units of a request whose P instance has been chosen.

        IRP: each unit goes to the encoder with the least to do. An instance that both encodes and prefills keeps its
        own, which saves the move.
        """
        spec, rank = request.spec, request.ranks["E"]
        buckets = spec.unit_buckets or (0,) * len(spec.unit_tokens)
        key = spec.unit_key
        self._deal(
            Unit(request.request_id, i, buckets[i], prefiller.name, key(i), rank, request.suspect) for i in indices
        )

    def _deal(self, units: Iterable[Unit]) -> None:
        """Put each unit into a queue, or aside where nobody encodes."""
        takers = [ledger for ledger in self._instances.values() if ledger.takes("E")]
        alone = [e for e in takers if not e.performs("P")] or takers
        for unit in units:
            prefiller = self._instances[unit.target]
            encoders = [prefiller] if prefiller.takes("E") else alone
            if encoders:
                self._choose(self._requests[unit.request_id], encoders).encode_queue.add(unit)
            else:
                self.homeless.add(unit)

    def find_homes(self) -> None:
        """Deal out again what was put aside."""
        if self.homeless and any(ledger.takes("E") for ledger in self._instances.values()):
            self._deal(self.homeless.take_all())

    def leave_encoder(self, encoder: Ledger) -> None:
        """An instance encodes no more: what is queued there goes to others."""
        self._deal(encoder.encode_queue.take_all())

    def is_queued(self, request: Request) -> bool:
        """Whether units that a request waits for are in a queue still, its own or another's of the same content."""
        if request.p_name is None:
            return False
        arrivals = self._instances[request.p_name].arrivals
        coming = (arrivals.get(request.spec.unit_key(index)) for index in request.missing)
        return any(arrival is not None and not arrival.begun for arrival in coming)

    def lost(self, ledger: Ledger) -> dict[str, Request]:
        """An instance is gone: what was to be moved from it or to it will not come; returns the requests that waited
        for it."""
        waiting: dict[str, Request] = {}
        for work in [move for move in self.ready if ledger.name in (move.source, move.instance)]:
            self.ready.remove(work)
            waiting |= self.failed(work)
        return waiting

    def next_step(self, ledger: Ledger) -> Encode | None:
        """The next encode step of an instance; None where nothing is queued, or too much waits to be moved.

        While one is running, less than a full step waits for more units, of whatever request: until that one is done,
        and no longer.
        """
        if not ledger.encode_queue:
            return None
        if not ledger.full_step_queued and any(isinstance(work, Encode) for work in ledger.in_flight.values()):
            return None
        work_id = next(self._work_ids)
        if not self.staging.begin(work_id, ledger):
            return None
        units = ledger.next_units()
        self._queued.units -= len(units)
        for unit in units:
            arrival = self._instances[unit.target].arrivals.get(unit.key)
            assert arrival is not None, "a unit that nobody waits for leaves its queue"
            arrival.begun = True
        return Encode(work_id, ledger.name, units)

    def encoded(self, work: Encode) -> None:
        """An encode has finished: queue the moves of its rows, one for each destination."""
        self.units_encoded += len(work.units)
        rows: dict[str, list[UnitMove]] = {}
        for row, unit in enumerate(work.units):
            if unit.target not in self._instances:
                continue  # it was taken out meanwhile
            arrivals = self._instances[unit.target].arrivals
            arrival = arrivals.get(unit.key)
            if arrival is not None and arrival.waiting:
                rows.setdefault(unit.target, []).append(UnitMove(unit, row, arrival.blocks))
            else:
                arrivals.failed(unit.key)
        self.staging.encoded(work.work_id, moves=len(rows))
        for target, moves in rows.items():
            self.ready.append(MoveMM(next(self._work_ids), work.instance, target, work.work_id, tuple(moves)))

    def moves(self) -> Iterable[MoveMM]:
        """The moves to start now: of what somebody still wants."""
        while self.ready:
            work = self.ready.popleft()
            arrivals = self._instances[work.instance].arrivals
            unwanted = [row for row in work.rows if arrivals.unwanted(row.unit.key)]
            for row in unwanted:
                arrivals.failed(row.unit.key)
            rows = tuple(row for row in work.rows if row not in unwanted)
            if rows:
                yield dataclasses.replace(work, rows=rows)
            else:
                self.staging.moved(work.encode_id)

    def landed(self, work: MoveMM) -> list[tuple[Request, int]]:
        """A move has landed; returns the (request, unit index) that waited for it."""
        self.staging.moved(work.encode_id)
        arrivals = self._instances[work.instance].arrivals
        return [waiting for row in work.rows for waiting in arrivals.landed(row.unit.key)]

    def failed(self, work: Encode | MoveMM) -> dict[str, Request]:
        """MM tokens will not come; returns the requests that waited for them."""
        if isinstance(work, Encode):
            self.staging.discard(work.work_id)
            units: Sequence[Unit] = work.units
        else:
            self.staging.moved(work.encode_id)
            units = [row.unit for row in work.rows]
        targets = ((self._instances[unit.target], unit.key) for unit in units if unit.target in self._instances)
        waiting = [who for target, key in targets for who, _ in target.arrivals.failed(key)]
        return {request.request_id: request for request in waiting}

    def leave(self, request: Request, prefiller: Ledger) -> None:
        """A request does not wait any longer: its queued units go to others that want the same content, or away."""
        prefiller.arrivals.leave(request)
        dropped = self.homeless.hand_on(request.request_id, self._heir)
        for encoder in self._instances.values():
            dropped += encoder.encode_queue.hand_on(request.request_id, self._heir)
        for unit in dropped:
            self._queued.units -= 1
            prefiller.arrivals.failed(unit.key)

    def _heir(self, unit: Unit) -> Unit | None:
        """The unit of equal content of another request that waits for it."""
        arrival = self._instances[unit.target].arrivals.get(unit.key)
        if arrival is None or not arrival.waiting:
            return None
        request, index = next(iter(arrival.waiting))
        return dataclasses.replace(unit, request_id=request.request_id, index=index)
