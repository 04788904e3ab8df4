"""Encode units that wait, so kept that a request's own are found without looking at those of others."""

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from epdjax.serving.ranked import Ranked
from epdjax.serving.work import Unit

Pile = tuple[int, bool]
"""Units of one size, and whether their requests have failed before: what may be encoded together."""


class UnitQueue:
    """Units in the order of their ranks, those of equal rank as they came.

    Args:
        ranked: whether ranks count; else all units are in the order in which they came.
    """

    def __init__(self, *, ranked: bool = True):
        self._ranked = ranked
        self._piles: dict[Pile, Ranked[Unit]] = {}
        self._of_request: dict[str, dict[Any, Pile]] = {}  # the places of its units
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return sum(map(len, self._piles.values()))

    def __iter__(self) -> Iterator[Unit]:
        """All in order. Nothing may be added or taken out meanwhile."""
        return (unit for _, unit in heapq.merge(*(pile.items() for pile in self._piles.values())))

    def count(self, bucket: int) -> int:
        """Units of a size."""
        return sum(len(pile) for (size, _), pile in self._piles.items() if size == bucket)

    @property
    def buckets(self) -> set[int]:
        """The sizes there are."""
        return {bucket for bucket, _ in self._piles}

    @property
    def first(self) -> Unit:
        """The unit that goes first; there must be one."""
        return min(self._piles.values(), key=lambda pile: pile.first_key).first

    def add(self, unit: Unit) -> None:
        """Put a unit behind those of equal rank."""
        place = (unit.rank if self._ranked else (), next(self._numbers))
        pile = unit.bucket, unit.suspect
        self._piles.setdefault(pile, Ranked()).add(place, unit)
        self._of_request.setdefault(unit.request_id, {})[place] = pile

    def take(self, first: Unit, most: int) -> tuple[Unit, ...]:
        """Take out the units that go into a step with `first`: those of its size, in order, `most` at most. The unit of
        a request that has failed before goes with others of that request only."""
        pile = first.bucket, first.suspect
        if first.suspect:
            own = self._of_request[first.request_id]
            places = sorted(place for place, where in own.items() if where == pile)[:most]
        else:
            places = self._piles[pile].first_keys(most)
        return tuple(self._pop(place, pile) for place in places)

    def take_all(self) -> list[Unit]:
        """Empty the queue; returns what was in it, in order."""
        units = list(self)
        self._piles, self._of_request = {}, {}
        return units

    def hand_on(self, request_id: str, heir: Callable[[Unit], Unit | None]) -> list[Unit]:
        """A request leaves: each of its units goes to its heir, in place, or out of the queue where it has none.

        Returns:
            The units that left the queue.
        """
        dropped = []
        for place, pile in sorted(self._of_request.get(request_id, {}).items()):
            unit = self._pop(place, pile)
            next_one = heir(unit)
            if next_one is None:
                dropped.append(unit)
                continue
            self._piles.setdefault(pile, Ranked()).add(place, next_one)
            self._of_request.setdefault(next_one.request_id, {})[place] = pile
        return dropped

    def _pop(self, place: Any, pile: Pile) -> Unit:
        unit = self._piles[pile].pop(place)
        if not self._piles[pile]:
            del self._piles[pile]
        own = self._of_request[unit.request_id]
        del own[place]
        if not own:
            del self._of_request[unit.request_id]
        return unit
