"""The prefill stage of the scheduler: which chunks of which prompts make up the next step of a P instance."""

import math
from collections.abc import Iterator

from epdjax.serving.ledger import Ledger
from epdjax.serving.moving import KVMoves
from epdjax.serving.request import Request, State
from epdjax.serving.work import Chunk, Prefill


class PrefillStage:
    """See the module.

    Args:
        work_ids: numbers for new work.
        moves: the queue for room on instances that decode, which prompts that stay where they are share.
    """

    def __init__(self, work_ids: Iterator[int], moves: KVMoves):
        self._work_ids, self._moves = work_ids, moves

    def next_step(self, ledger: Ledger) -> Prefill | None:
        """Pack the heads of the queue into one step: what was begun goes on first, then in order of the policy."""
        failed, ledger.last_failed = ledger.last_failed, frozenset()
        queue, most = ledger.prefill_queue, self._most_tokens(ledger)
        chunks: list[Chunk] = []
        longest = 0
        for request in queue.candidates(most, failed):
            length = queue.chunk_length(request, most)
            if length == 0 or (request.suspect and chunks):
                continue  # its next MM tokens are still on their way; or it has failed before, and runs alone
            shape = ledger.buckets.prefill_for(len(chunks) + 1, max(longest, length))
            if shape is None or (chunks and shape[0] * shape[1] > most):
                break
            if request.state is not State.PREFILLING:
                if not self._start(ledger, request):
                    break
                length = queue.chunk_length(request, most)  # some of it may have been found in the cache
                if length == 0:
                    continue
            longest = max(longest, length)
            chunks.append(_chunk(ledger, request, length))
            if request.suspect:
                break
        return Prefill(next(self._work_ids), ledger.name, tuple(chunks)) if chunks else None

    def _most_tokens(self, ledger: Ledger) -> int:
        """Tokens of a step, padding included: as many as there can be, or where sequences wait for their next token
        meanwhile, as many as keep their pace."""
        sizes, patience = ledger.step_tokens, ledger.patience_s
        if patience == math.inf:
            return sizes[-1]
        return max((size for size in sizes if ledger.times.prefill_s(size) <= patience), default=sizes[0])

    def _start(self, ledger: Ledger, request: Request) -> bool:
        """Take KV blocks and a slot for a prompt; False where there is no room yet."""
        stays = ledger.takes("D")
        if stays and self._moves.goes_before(request):
            return False  # a sequence that was prefilled elsewhere waits for this kind of room
        if not ledger.reserve_kv(request):
            return False
        request.state = State.PREFILLING
        ledger.prefill_queue.update(request)
        if stays:
            ledger.assign_sequence(request)
        return True


def _chunk(ledger: Ledger, request: Request, length: int) -> Chunk:
    start = request.prefilled
    request.prefilled += length
    is_last = request.prefilled == request.context
    if is_last:
        ledger.prefill_queue.remove(request)
        request.scheduled = request.resumed + 1
    else:
        ledger.prefill_queue.update(request)
    return Chunk(
        request.request_id,
        start,
        length,
        is_last,
        request.slot(ledger.name),
        request.kv_blocks(ledger.name),
        tuple(request.mm_blocks[i] for i in range(request.spec.units)),
        request.cached,
    )
