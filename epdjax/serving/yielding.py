"""Whoever holds many places makes room for a client who holds few: with the order ``fair``, one client's long answers
do not keep the first token of another waiting until one of them ends.

Where a request waits because all slots or KV blocks of an instance are taken, and its client holds at least two places
fewer there than another, the last request of the client who holds most leaves its place: a sequence that is being
decoded is preempted, and a prompt that waits for room elsewhere starts over (its KV stays in the cache). From then on
its place in the order is behind the one that it made room for. So places even out among clients, never beyond one place
of difference, and a client alone is never asked.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping

from epdjax.serving.ledger import Ledger
from epdjax.serving.moving import KVMoves
from epdjax.serving.request import Rank, Request, State


class Yielding:
    """See the module.

    Args:
        instances: all ledgers.
        moves: where prefilled sequences wait for room.
        pause: preempt a request. start_over: give up what one has so far.
    """

    def __init__(
        self,
        instances: Mapping[str, Ledger],
        moves: KVMoves,
        pause: Callable[[Request], None],
        start_over: Callable[[Request], None],
    ):
        self._instances, self._moves = instances, moves
        self._pause, self._start_over = pause, start_over

    def make_room(self) -> None:
        """Have one request leave each instance where the first that waits for room is due some."""
        waits = self._moves.first_waiting()
        for ledger in self._instances.values():
            if waits is not None and ledger.takes("D") and ledger.name != waits.kv_source:
                self._for(waits, ledger)
            if ledger.takes("P") and (prompt := ledger.prefill_queue.first_waiting()) is not None:
                self._for(prompt, ledger)

    def _for(self, request: Request, ledger: Ledger) -> None:
        if ledger.has_room(request):
            return
        holders = [holder for holder in ledger.kv_holders.values() if holder is not request]
        if any(map(_is_leaving, holders)):
            return
        places = collections.Counter(holder.spec.client for holder in holders)
        mine = places[request.spec.client]
        could_go = [holder for holder in self._could_go(ledger, holders) if places[holder.spec.client] > mine + 1]
        if not could_go:
            return
        last = max(could_go, key=lambda holder: (places[holder.spec.client], holder.ranks["D"]))
        self._moves.leave(last)  # where it has its old place
        last.ranks = _behind(last, request)
        if last.request_id in ledger.running:
            self._pause(last)
        else:
            self._start_over(last)

    def _could_go(self, ledger: Ledger, holders: Iterable[Request]) -> list[Request]:
        """Sequences being decoded here, and those that were prefilled here and wait for room elsewhere."""
        waiting = (h for h in holders if h.state is State.MOVE_QUEUED and h.d_name is None and not h.in_flight)
        return [*ledger.running.values(), *waiting]


def _behind(request: Request, first: Request) -> dict[str, Rank]:
    """The places of a request that lets another go first, at every stage: it would take the room back otherwise."""
    return {
        role: max(rank, (math.nextafter(first.ranks[role][0], math.inf), rank[1]))
        for role, rank in request.ranks.items()
    }


def _is_leaving(holder: Request) -> bool:
    """Whether a request gives its place back soon without being asked."""
    return holder.pausing or holder.all_scheduled or holder.state in (State.FINISHED, State.INTERRUPTED)
