"""The decode stage of the scheduler: the next step of a D instance, and room for what it writes.

A sequence takes KV blocks as it grows. Where there are none left, the one that the policy puts last makes room: it is
taken out, and goes on later with the same tokens.
"""

from collections.abc import Callable, Iterator

from epdjax.serving.ledger import Ledger
from epdjax.serving.request import Request, State
from epdjax.serving.work import Decode
from epdjax.serving.work import Sequence as Row


class DecodeStage:
    """See the module.

    Args:
        work_ids: numbers for new work.
        pause: take a request out of its instance.
    """

    def __init__(self, work_ids: Iterator[int], pause: Callable[[Request], None]):
        self._work_ids, self._pause = work_ids, pause

    def next_step(self, ledger: Ledger) -> Decode | None:
        """One step for every running sequence that has room for its next token; None where there is none."""
        going = [r for r in ledger.running.values() if not r.all_scheduled]
        suspects = [r for r in going if r.suspect][:1]  # it has failed before, and runs alone
        rows = self._rows(ledger, suspects) or self._rows(ledger, [r for r in going if not r.suspect])
        if not rows:
            return None
        for row in rows:
            ledger.running[row.request_id].scheduled += 1
        return Decode(next(self._work_ids), ledger.name, tuple(rows))

    def _rows(self, ledger: Ledger, sequences: list[Request]) -> list[Row]:
        rows: list[Row] = []
        # Those that go first take their blocks first: who makes room for them has no row yet.
        for request in sorted(sequences, key=lambda r: r.ranks["D"]):
            if request.request_id in ledger.running and self._has_room(ledger, request):
                blocks = request.kv_blocks(ledger.name)[: request.position // ledger.block_size + 1]
                rows.append(Row(request.request_id, request.slot(ledger.name), request.position, blocks))
        return rows

    def _has_room(self, ledger: Ledger, request: Request) -> bool:
        """Take the block that the next token of a sequence needs, if it needs one; False where it has to wait."""
        if request.position < len(request.kv_blocks(ledger.name)) * ledger.block_size:
            return True
        while ledger.take("kv", 1, request) is None:
            if self._room_is_coming(ledger, request):
                return False
            last = max(self._could_go(ledger), key=lambda r: r.ranks["D"])
            self._pause(last)
            if last is request:
                return False
        return True

    def _room_is_coming(self, ledger: Ledger, request: Request) -> bool:
        """Whether somebody gives blocks back soon without being asked: who is over, on the way out, or waits for his
        last token. Who is on his way in and goes behind `request` can be asked when he is there."""
        there = {id(r) for r in self._could_go(ledger)}
        return any(
            other.state is State.FINISHED
            or other.pausing
            or other.all_scheduled
            or other.kv_source == ledger.name
            or (id(other) not in there and other.ranks["D"] > request.ranks["D"])
            for other in ledger.kv_holders.values()
        )

    def _could_go(self, ledger: Ledger) -> list[Request]:
        """Who could make room: sequences being decoded, and prompts that are prefilled here."""
        return [*ledger.running.values(), *ledger.prefill_queue.begun()]
