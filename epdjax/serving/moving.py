"""KV on its way to the instances that decode: chunk by chunk while a prompt is still prefilled, several requests at a
time, and from one D instance to another that has room.

A destination is chosen, and blocks and a slot reserved there, as soon as some of a prompt's KV is in place and there is
room. Only sequences that are prefilled to the end hold others back when there is none.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from epdjax.serving.blocks import blocks_for
from epdjax.serving.ledger import Ledger
from epdjax.serving.ranked import Ranked
from epdjax.serving.request import Request, State
from epdjax.serving.work import KVPart, MoveKV

MOST_PARTS = 8  # requests in one move
IN_FLIGHT = 2  # moves between two instances at a time; what becomes movable meanwhile goes together in the next


@dataclasses.dataclass
class MoveStats:
    """What was moved so far, and how much of it anybody waited for.

    Attributes:
        moves, parts, blocks: how many. early_blocks: moved before their prompt was prefilled to its end.
        seconds: of all moves together, from start to landing.
        sequences: that have arrived complete. exposed_s: seconds they waited for the rest of their KV, from the end of
            their prefill on, for room included.
    """

    moves: int = 0
    parts: int = 0
    blocks: int = 0
    early_blocks: int = 0
    seconds: float = 0.0
    sequences: int = 0
    exposed_s: float = 0.0


class KVMoves:
    """See the module.

    Args:
        instances: all ledgers.
        choose: which of several D instances gets a request.
        work_ids: numbers for new work.
        adopt: start decoding a sequence where its KV is.
    """

    def __init__(
        self,
        instances: Mapping[str, Ledger],
        choose: Callable[[Request, Sequence[Ledger]], Ledger],
        work_ids: Iterator[int],
        adopt: Callable[[Request, Ledger], None],
    ):
        self._instances, self._choose, self._work_ids, self._adopt = instances, choose, work_ids, adopt
        self._block_size = next(iter(instances.values())).block_size
        self._most_blocks = next(iter(instances.values())).buckets.move_blocks[-1]
        self.queue: Ranked[Request] = Ranked()  # some of their KV is, or soon will be, to be moved
        self._in_flight: collections.Counter[tuple[str, str]] = collections.Counter()
        self._began: dict[int, tuple[MoveKV, float]] = {}
        self.stats = MoveStats()

    def renew(self) -> None:
        """Nothing is to be moved, or under way."""
        self.queue = Ranked()
        self._in_flight.clear()
        self._began.clear()

    def enter(self, request: Request, source: Ledger) -> None:
        """Some KV of `request` is in place on `source`, and it is decoded elsewhere."""
        request.kv_source = source.name
        self._queue(request)

    def leave(self, request: Request) -> None:
        if request.ranks["D"] in self.queue:
            self.queue.pop(request.ranks["D"])

    def goes_before(self, request: Request) -> bool:
        """Whether a sequence that waits for room on a D instance goes before `request`."""
        first = next((r for r in self.queue if r.state is State.MOVE_QUEUED), None)
        return first is not None and first.ranks["D"] < request.ranks["D"]

    def first_waiting(self) -> Request | None:
        """The first sequence that waits for room on a D instance."""
        return next((r for r in self.queue if r.state is State.MOVE_QUEUED and r.d_name is None), None)

    def displace(self, request: Request, source: Ledger) -> bool:
        """Move a sequence that was being decoded on `source` to another instance; False where none has room."""
        siblings = [d for d in self._decoders() if d is not source and d.has_turn(request)]
        if not siblings:
            return False
        self.park(request, source)
        self._reserve(request, self._choose(request, siblings))
        request.state = State.MOVING_KV
        return True

    def park(self, request: Request, source: Ledger) -> None:
        """A sequence that was being decoded on `source`, which decodes no more, waits there for room elsewhere."""
        request.filled, request.moved = request.context - 1, 0  # the newest token has not been run
        self.enter(request, source)
        request.state = State.MOVE_QUEUED

    def choose_again(self, request: Request) -> None:
        """The instance that was chosen for a sequence, and perhaps has some of its KV, is not to be used: another has
        to be found. No move of it may be running."""
        assert request.d_name is not None
        target = self._instances[request.d_name]
        for pool in ("kv", "slot"):
            target.give_back(pool, request)
        target.release_sequence(request)
        request.moved = 0
        if request.state is State.MOVING_KV:
            request.state = State.MOVE_QUEUED
        if request.kv_source:
            self._queue(request)

    def running(self, name: str) -> list[MoveKV]:
        """The moves from or to an instance that have not ended."""
        return [work for work, _ in self._began.values() if name in (work.source, work.instance)]

    def on_the_way(self, request: Request) -> bool:
        """Whether a move of a request has not ended."""
        return any(part.request_id == request.request_id for work, _ in self._began.values() for part in work.parts)

    def next_moves(self) -> Iterable[MoveKV]:
        """The moves to start now."""
        self._assign()
        lanes: dict[tuple[str, str], list[Request]] = {}
        for request in self.queue:
            if request.d_name is not None and (_complete(request) or self._unmoved(request)):
                lanes.setdefault((request.kv_source, request.d_name), []).append(request)
        for lane, requests in lanes.items():
            while requests and self._in_flight[lane] < IN_FLIGHT:
                parts = self._pack(requests)
                self._in_flight[lane] += 1
                yield MoveKV(next(self._work_ids), *lane, tuple(parts))

    def began(self, work: MoveKV, now: float) -> None:
        """A move was started."""
        self._began[work.work_id] = work, now

    def ended(self, work: MoveKV, now: float) -> None:
        """A move is over, well or not."""
        self._in_flight[work.source, work.instance] -= 1
        self.stats.moves += 1
        self.stats.parts += len(work.parts)
        self.stats.seconds += now - self._began.pop(work.work_id)[1]

    def arrived(self, request: Request, now: float) -> None:
        """All KV of a sequence has landed. One that was preempted is not counted: it waited for other things too."""
        if not request.resumed:
            self.stats.sequences += 1
            self.stats.exposed_s += now - request.filled_at

    def _decoders(self) -> list[Ledger]:
        return [ledger for ledger in self._instances.values() if ledger.takes("D")]

    def _assign(self) -> None:
        """Give requests, in order, a D instance with room; their own where that has come to decode meanwhile: that
        takes no more room than they have, and gives it back in the end, so it waits for nobody."""
        held_back = False
        for request in list(self.queue):
            if request.d_name is not None:
                continue
            home = self._instances[request.kv_source]
            if home.takes("D"):
                if request.state is State.MOVE_QUEUED:
                    self.leave(request)
                    self._adopt(request, home)
                continue
            if held_back:
                continue
            roomy = [d for d in self._decoders() if d.has_turn(request)]
            if roomy:
                self._reserve(request, self._choose(request, roomy))
            elif request.state is State.MOVE_QUEUED:
                held_back = True  # nobody overtakes it

    def _reserve(self, request: Request, target: Ledger) -> None:
        blocks = target.take("kv", target.start_blocks(request), request)
        slot = target.take("slot", 1, request)
        assert blocks is not None and slot is not None
        target.assign_sequence(request)

    def _queue(self, request: Request) -> None:
        if request.ranks["D"] not in self.queue:
            self.queue.add(request.ranks["D"], request)

    def _unmoved(self, request: Request) -> int:
        """Blocks that can be moved now: full ones, and the last one when all is there."""
        there = blocks_for(request.filled, self._block_size)
        if not _complete(request):
            there = request.filled // self._block_size
        return there - blocks_for(request.moved, self._block_size)

    def _pack(self, requests: list[Request]) -> list[KVPart]:
        """Parts of one move, taken from the front of `requests`; those with nothing left leave the list."""
        room = self._most_blocks
        parts: list[KVPart] = []
        while requests and room and len(parts) < MOST_PARTS:
            count = min(room, self._unmoved(requests[0]))
            parts.append(self._part(requests[0], count))
            room -= count
            if not self._unmoved(requests[0]):
                del requests[0]
        return parts

    def _part(self, request: Request, count: int) -> KVPart:
        source, target = request.kv_source, request.d_name
        assert target is not None
        first = blocks_for(request.moved, self._block_size)
        span = slice(first, first + count)
        request.moved = min((first + count) * self._block_size, request.filled)
        is_last = _complete(request) and request.moved == request.filled
        self.stats.blocks += count
        if is_last:
            request.state = State.MOVING_KV
            self.leave(request)
        elif not _complete(request):
            self.stats.early_blocks += count
        return KVPart(
            request.request_id,
            request.kv_blocks(source)[span],
            request.kv_blocks(target)[span],
            is_last,
            request.slot(target) if is_last else 0,
        )


def _complete(request: Request) -> bool:
    """Whether all the KV to be moved is in place at the source."""
    return request.state is not State.PREFILLING
