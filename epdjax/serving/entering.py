"""Where requests enter, and come back to when they start over: they wait for a P instance, which is chosen now so that
all units of a request meet there."""

from epdjax.serving.admission import Queued
from epdjax.serving.assigning import Assigner
from epdjax.serving.encoding import EncodeStage
from epdjax.serving.ledger import Ledger
from epdjax.serving.ranked import Ranked
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
        self._texts: Ranked[Request] = Ranked()  # no P instance would hold them when they came
        self._tried: object = None  # the P instances there were, if all texts were tried on them
        self._media: Ranked[Request] = Ranked()
        self._stuck: object = None  # the first of them, and the room there was when it found none

    def renew(self) -> None:
        """Nobody waits."""
        self._texts, self._media = Ranked(), Ranked()
        self._tried = self._stuck = None

    @property
    def waiting(self) -> list[Request]:
        """Requests without an instance yet."""
        return [*self._texts, *self._media]

    def enter(self, request: Request) -> None:
        """Put a request where it starts, or starts anew."""
        self._queued.units += request.spec.units
        if request.spec.units:
            request.state = State.WAITING
            self._media.add(request.ranks["E"], request)
        elif not self._assign_text(request):
            request.state = State.WAITING
            prefillers = self._prefillers()
            if not self._texts:
                self._tried = prefillers
            elif self._tried != prefillers:
                self._tried = None
            self._texts.add(request.ranks["E"], request)

    def leave(self, request: Request) -> None:
        """A request does not wait any longer."""
        if request.state is State.WAITING:
            self._queued.units -= request.spec.units
            (self._media if request.spec.units else self._texts).pop(request.ranks["E"])

    def admit(self) -> None:
        """Give waiting requests a P instance with room for all their MM tokens, and queue their units for encoding.

        Nobody overtakes: a request that finds no room holds back those behind it, until running ones make room.
        """
        self._admit_texts()
        while self._media:
            first = self._media.first
            room = {p.name: p.pools["mm"].available for p in self._assigner.with_role("P")}
            if self._stuck == (first.request_id, room):
                return
            if not self._assign_media(first):
                self._stuck = first.request_id, room
                return
            self._stuck = None
            self._media.pop(first.ranks["E"])

    def _admit_texts(self) -> None:
        prefillers = self._prefillers()
        if not self._texts or self._tried == prefillers:
            return
        self._tried = prefillers
        for request in list(self._texts):
            if self._assign_text(request):
                self._texts.pop(request.ranks["E"])

    def _prefillers(self) -> object:
        """The P instances as far as it depends on them whether a text finds one: empty, they would hold it."""
        return [(p.name, p.pools["kv"].capacity, p.pools["mm"].capacity) for p in self._assigner.with_role("P")]

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
        ledger.assign_prompt(request)
        request.state = state
        ledger.prefill_queue.add(request)
