"""Prompts that wait to be prefilled on one instance, or are being prefilled there, chunk by chunk.

A prompt whose next MM tokens are still on their way cannot go on, or only with a short chunk. Prompts are kept apart by
the largest step that may run a chunk of theirs, so a step is packed without looking at those that have to wait.
"""

import math
from collections.abc import Collection, Iterator, Sequence

from epdjax.serving.ranked import Ranked
from epdjax.serving.request import Request, State

Place = tuple[bool, tuple[float, int]]
"""What was begun goes on first, then the rank."""


class PrefillQueue:
    """See the module. Whoever changes what is prefilled of a prompt, or what is missing, says so (`update`).

    Args:
        step_tokens: tokens that a step may have, padding included; ascending.
        max_chunk: prompt tokens of one row at most.
    """

    def __init__(self, step_tokens: Sequence[int], max_chunk: int):
        self._steps, self._max_chunk = step_tokens, max_chunk
        self._piles: dict[float, Ranked[Request]] = {}  # by the largest step; 0: none, infinite: any
        self._places: dict[Request, tuple[float, Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Request]:
        """All, in no order."""
        return iter(self._places)

    def __contains__(self, request: object) -> bool:
        return request in self._places

    def add(self, request: Request) -> None:
        place = (request.prefilled == 0, request.ranks["P"])
        largest = self._largest_step(request)
        self._piles.setdefault(largest, Ranked()).add(place, request)
        self._places[request] = largest, place

    def remove(self, request: Request) -> None:
        """Take a prompt out; nothing happens if it is not there."""
        if request in self._places:
            largest, place = self._places.pop(request)
            self._piles[largest].pop(place)
            if not self._piles[largest]:
                del self._piles[largest]

    def update(self, request: Request) -> None:
        """A prompt, if it is there, has got further, or MM tokens of it have come."""
        if request in self._places:
            self.remove(request)
            self.add(request)

    def candidates(self, most: int, last: Collection[str]) -> Iterator[Request]:
        """The prompts of which a step of `most` tokens may run a chunk, in order, those named in `last` behind the
        others. They may be taken out or get further meanwhile."""
        skipped, place = [], None
        piles = [pile for largest, pile in self._piles.items() if largest >= most]
        while True:
            following = [
                (key, number)
                for number, pile in enumerate(piles)
                if pile and (key := pile.first_key if place is None else pile.next_key(place)) is not None
            ]
            if not following:
                break
            place, number = min(following)
            request = piles[number][place]
            if request.request_id in last:
                skipped.append(request)
            else:
                yield request
        yield from skipped

    def first_waiting(self) -> Request | None:
        """The first of those that have all their MM tokens and were not begun."""
        pile = self._piles.get(math.inf)
        place = pile.next_key((True,)) if pile is not None else None
        return pile[place] if pile is not None and place is not None else None

    def begun(self) -> list[Request]:
        """Those that were begun."""
        found = []
        for pile in self._piles.values():
            for (untouched, _), request in pile.items():
                if untouched:
                    break
                found.append(request)
        return found

    def chunk_length(self, request: Request, most: int) -> int:
        """Tokens of a prompt's next chunk in a step of `most` tokens; 0 while it waits for MM tokens.

        Encoding and prefill of one request overlap: a chunk may start when the MM tokens it needs are there, though
        only a full one, since the rest of a short one would take a step of its own.
        """
        start, spec = request.prefilled, request.spec
        most = min(most, self._max_chunk)
        for first, last in spec.whole:
            if first <= start < last:
                most = max(most, last - start)  # what must be run together is, whatever the pace
        end = spec.not_inside(min(start + most, request.ready))
        if request.missing and end < spec.not_inside(start + most):
            return 0
        return max(0, end - start)

    def _largest_step(self, request: Request) -> float:
        if not request.missing:
            return math.inf
        return next((most for most in reversed(self._steps) if self.chunk_length(request, most)), 0)

    def check(self) -> None:
        """Every prompt is where it belongs.

        Raises:
            AssertionError: one is not: it got further and nobody said so.
        """
        for request, (largest, place) in self._places.items():
            now = (self._largest_step(request), (request.prefilled == 0, request.ranks["P"]))
            assert now == (largest, place), f"{request.request_id}: {(largest, place)}, should be {now}"
            assert (request.state is State.PREFILLING) == (request.prefilled > 0), request.request_id
