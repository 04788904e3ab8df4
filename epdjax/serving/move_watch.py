"""How long moves that have not ended have been under way. Pure, like the rest of the scheduler."""

import dataclasses
import math
from collections.abc import Iterable

from epdjax.serving.work import MoveKV, MoveMM

Move = MoveMM | MoveKV


@dataclasses.dataclass
class _UnderWay:
    move: Move
    since: float
    behind: set[int]  # steps that were running at its source, which have not ended


class MoveWatch:
    """See the module. A move gets its blocks out of a pool behind the steps that its source runs then: it is under way
    when these have ended."""

    def __init__(self) -> None:
        self._moves: dict[int, _UnderWay] = {}

    def began(self, move: Move, behind: Iterable[int], now: float) -> None:
        """A move was started, behind some steps of its source."""
        self._moves[move.work_id] = _UnderWay(move, now, set(behind))

    def ended(self, work_id: int, now: float) -> None:
        """A move, or a step, has ended, well or not."""
        self._moves.pop(work_id, None)
        for under_way in self._moves.values():
            if work_id in under_way.behind:
                under_way.behind.remove(work_id)
                under_way.since = now

    def clear(self) -> None:
        """Nothing is under way."""
        self._moves.clear()

    @property
    def since(self) -> float:
        """When the oldest came to be under way; infinite where none is."""
        return min((some.since for some in self._moves.values() if not some.behind), default=math.inf)

    def overdue(self, now: float, limit_s: float) -> list[Move]:
        """The moves that have been under way for longer than `limit_s`."""
        return [some.move for some in self._moves.values() if not some.behind and now - some.since > limit_s]
