"""Where requests enter, and come back to when they start over: they wait for a P instance, which is chosen now so that
all units of a request meet there."""

import bisect

from epdjax.serving.admission import Queued
from epdjax.serving.assigning import Assigner
from epdjax.serving.encoding import EncodeStage
from epdjax.serving.ledger import Ledger
from epdjax.serving.request import Request, State


class EntryStage:
    """See the module.

    Args:
        assigner: chooses P instances.
        encoding: the stage that follows for requests with media.
        queued: what waits to be encoded, counted for admission.
    """

    def __init__(self, assigner: Assigner, encoding: EncodeStage, queued: Queued):
        self._assigner, self._encoding, self._queued = assigner, encoding, queued
        self._texts: list[Request] = []  # there was no P instance when they came
        self._media: list[Request] = []  # by rank
        self._stuck: object = None  # the first of them, and the room there was when it found none

    @property
    def waiting(self) -> list[Request]:
        """Requests without an instance yet."""
        return self._texts + self._media

    def enter(self, request: Request) -> None:
        """Put a request where it starts, or starts anew."""
        self._queued.units += request.spec.units
        if request.spec.units:
            request.state = State.WAITING
            bisect.insort(self._media, request, key=lambda r: r.ranks["E"])
        elif not self._assign_text(request):
            request.state = State.WAITING
            bisect.insort(self._texts, request, key=lambda r: r.ranks["E"])

    def leave(self, request: Request) -> None:
        """A request does not wait any longer."""
        if request.state is State.WAITING:
            self._queued.units -= request.spec.units
            (self._media if request.spec.units else self._texts).remove(request)

    def admit(self) -> None:
        """Give waiting requests a P instance with room for all their MM tokens, and queue their units for encoding.

        Nobody overtakes: a request that finds no room holds back those behind it, until running ones make room.
        """
        self._texts = [request for request in self._texts if not self._assign_text(request)]
        while self._media:
            room = {p.name: p.pools["mm"].available for p in self._assigner.with_role("P")}
            if self._stuck == (self._media[0].request_id, room):
                return
            if not self._assign_media(self._media[0]):
                self._stuck = self._media[0].request_id, room
                return
            self._stuck = None
            del self._media[0]

    def _assign_text(self, request: Request) -> bool:
        """Give a request without media a P instance; False where there is none just now."""
        fitting = self._fitting(request)
        if fitting:
            self._assign(request, self._assigner.choose("P", request, fitting), State.PREFILL_QUEUED)
        return bool(fitting)

    def _assign_media(self, request: Request) -> bool:
        """Give a request with media a P instance; False where none has room."""
        # Where nobody has room for everything, what is there already may make the difference.
        fitting = [p for p in self._fitting(request) if p.pools["mm"].available >= p.mm_new(request.spec)]
        roomy = [p for p in fitting if p.pools["mm"].available >= p.mm_need(request.spec)]
        if not fitting:
            return False
        ledger = self._assigner.choose("P", request, roomy or fitting)
        to_encode = ledger.reserve_mm(request)
        if to_encode is None:
            return False
        self._assign(request, ledger, State.ENCODING if request.missing else State.PREFILL_QUEUED)
        self._queued.units -= request.spec.units - len(to_encode)
        self._encoding.queue(request, ledger, to_encode)
        return True

    def _fitting(self, request: Request) -> list[Ledger]:
        return [p for p in self._assigner.with_role("P") if p.could_prefill(request.spec)]

    def _assign(self, request: Request, ledger: Ledger, state: State) -> None:
        request.p_name, request.state = ledger.name, state
        ledger.prompt_tokens += request.context
        ledger.prefill_queue.append(request)
