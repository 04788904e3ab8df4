"""How requests leave their place in the pipeline: for good, to make room for others, or because what they had is lost.

Those that only make room go on elsewhere, or later, with the same tokens. Whoever leaves keeps what he holds until no
running work touches it.
"""

from collections.abc import Callable, Iterable, Mapping

from epdjax.serving.encoding import EncodeStage
from epdjax.serving.entering import EntryStage
from epdjax.serving.ledger import Ledger
from epdjax.serving.moving import KVMoves
from epdjax.serving.request import Request, State


class Departures:
    """See the module.

    Args:
        instances: all ledgers.
        entry, encoding, moves: the places to leave, and to come back to.
        adopt: start decoding a sequence where its KV is.
        keeps_kv: whether sequences that an instance decodes no more may wait there for room elsewhere.
    """

    def __init__(
        self,
        instances: Mapping[str, Ledger],
        entry: EntryStage,
        encoding: EncodeStage,
        moves: KVMoves,
        adopt: Callable[[Request, Ledger], None],
        keeps_kv: Callable[[Ledger], bool],
    ):
        self._instances, self._entry, self._encoding, self._moves = instances, entry, encoding, moves
        self._adopt, self._keeps_kv = adopt, keeps_kv
        self.preemptions = 0

    def pause(self, request: Request, *, returns: bool = False) -> None:
        """Take a request out of its instance, which needs the room; it goes when no running work touches it.

        Args:
            returns: if nobody else has room for it then, it goes on where it was.
        """
        for name in (request.p_name, request.d_name):
            if name is not None:
                ledger = self._instances[name]
                ledger.running.pop(request.request_id, None)
                ledger.prefill_queue.remove(request)
        request.pausing, request.returns = True, returns
        self.let_go([request])

    def send_back(self, request: Request) -> None:
        """What a request has so far is lost or given up: it starts over, its answer so far included, as soon as no
        running work touches it."""
        if request.state is not State.INTERRUPTED:
            self.leave_queues(request)
        self.let_go([request])

    def let_go(self, requests: Iterable[Request]) -> None:
        """Send on those that were taken out of their place and are not touched by running work any more."""
        for request in requests:
            if request.in_flight or request.state is State.FINISHED:
                continue
            if request.state is State.INTERRUPTED:
                self._start_over(request)
            elif request.pausing:
                request.pausing = False
                self.preemptions += not request.returns
                if request.state is State.PREFILLING:
                    self._prefill_anew(request)
                else:
                    self._decode_elsewhere(request)

    def leave_queues(self, request: Request) -> None:
        """Take a request out of its place in the pipeline; what it holds it still holds."""
        self._entry.leave(request)
        self._moves.leave(request)
        if request.p_name is not None:
            self._leave_prefill(request, self._instances[request.p_name])
        if request.d_name is not None:
            self._instances[request.d_name].release_sequence(request)
        request.pausing = request.returns = False
        request.state = State.INTERRUPTED

    def give_back_all(self, request: Request) -> None:
        """Return all that a request holds; no running work may touch it."""
        for name, pool in list(request.holdings):
            self._instances[name].give_back(pool, request)

    def _prefill_anew(self, request: Request) -> None:
        """A prompt gives up the KV it has so far, not its MM tokens, and starts again when there is room."""
        assert request.p_name is not None
        ledger = self._instances[request.p_name]
        for pool in ("kv", "slot"):
            ledger.give_back(pool, request)
        ledger.release_sequence(request)
        request.prefilled = request.filled = request.cached = 0
        request.state = State.ENCODING if request.missing else State.PREFILL_QUEUED
        ledger.prefill_queue.add(request)

    def _decode_elsewhere(self, request: Request) -> None:
        """A sequence moves to another instance that has room, or is prefilled again, its answer so far included."""
        assert request.d_name is not None
        source = self._instances[request.d_name]
        returns = request.returns
        self.leave_queues(request)
        request.resumed = request.delivered
        if self._moves.displace(request, source):
            return
        if returns:
            self._adopt(request, source)
        elif self._keeps_kv(source):
            self._moves.park(request, source)
        else:
            self._start_over(request)

    def _start_over(self, request: Request) -> None:
        """Give everything back and begin again with the prompt and the answer so far."""
        self.give_back_all(request)
        request.mm_blocks.clear()
        request.kv_source = ""
        request.resumed = request.scheduled = request.delivered
        request.prefilled = request.filled = request.cached = request.moved = 0
        self._entry.enter(request)

    def _leave_prefill(self, request: Request, ledger: Ledger) -> None:
        ledger.release_prompt(request)
        ledger.prefill_queue.remove(request)
        if request.missing:
            self._encoding.leave(request, ledger)
            request.missing.clear()
