"""MM tokens on their way to a P instance: each content is encoded and moved once, however many requests wait for it.

An arrival holds its MM blocks from the moment a unit is queued for encoding until its MM tokens have landed, so that no
late write can reach a block that belongs to somebody else. Then it is published in the MM pool, where later requests
find it for as long as there is room.
"""

import collections
import dataclasses
from collections.abc import Hashable

from epdjax.serving.blocks import BlockPool
from epdjax.serving.request import Request


@dataclasses.dataclass
class Arrival:
    """One content that is being encoded or moved.

    Attributes:
        blocks: where it will be.
        waiting: (request, unit index) of those that want it, in the order in which they came.
        begun: it is being encoded, or was; else its unit is in a queue.
    """

    blocks: tuple[int, ...]
    waiting: "collections.OrderedDict[tuple[Request, int], None]" = dataclasses.field(
        default_factory=collections.OrderedDict
    )
    begun: bool = False


class Arrivals:
    """All that is on its way to one P instance."""

    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._by_key: dict[Hashable, Arrival] = {}
        self.holds = 0  # on blocks, besides those of the requests that wait

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def held(self) -> list[int]:
        """The blocks that arrivals hold themselves."""
        return [block for arrival in self._by_key.values() for block in arrival.blocks]

    def queued(self) -> list[Hashable]:
        """What is in a queue to be encoded."""
        return [key for key, arrival in self._by_key.items() if not arrival.begun]

    def expect(self, key: Hashable, blocks: tuple[int, ...]) -> None:
        """`blocks`, held by the caller, will hold `key`."""
        self._pool.hold(blocks)
        self.holds += len(blocks)
        self._by_key[key] = Arrival(blocks)

    def wait(self, key: Hashable, request: Request, index: int) -> tuple[int, ...]:
        """`request` wants `key` for its unit `index`; returns where it will be (the caller holds it on its own)."""
        arrival = self._by_key[key]
        arrival.waiting[request, index] = None
        return arrival.blocks

    def get(self, key: Hashable) -> Arrival | None:
        return self._by_key.get(key)

    def landed(self, key: Hashable) -> list[tuple[Request, int]]:
        """The MM tokens are there; returns who waited for them."""
        arrival = self._by_key.pop(key)
        self._pool.publish(key, arrival.blocks)
        self._give_back(arrival)
        return list(arrival.waiting)

    def failed(self, key: Hashable) -> list[tuple[Request, int]]:
        """They will not come; returns who waited for them."""
        arrival = self._by_key.pop(key, None)
        if arrival is None:
            return []
        self._give_back(arrival)
        return list(arrival.waiting)

    def leave(self, request: Request) -> None:
        """`request` does not wait any longer for what it misses."""
        for index in request.missing:
            arrival = self._by_key.get(request.spec.unit_key(index))
            if arrival is not None:
                arrival.waiting.pop((request, index), None)

    def unwanted(self, key: Hashable) -> bool:
        """Whether nobody waits for what is on its way under `key`."""
        arrival = self._by_key.get(key)
        return arrival is None or not arrival.waiting

    def _give_back(self, arrival: Arrival) -> None:
        self._pool.give_back(arrival.blocks)
        self.holds -= len(arrival.blocks)
