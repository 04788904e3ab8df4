"""MM tokens on their way to a P instance: each content is encoded and moved once, however many requests wait for it.

An arrival holds its MM blocks from the moment a unit is queued for encoding until its MM tokens have landed, so that no
late write can reach a block that belongs to somebody else. Then it is published in the MM pool, where later requests
find it for as long as there is room.
"""

import dataclasses
from collections.abc import Hashable

from epdjax.serving.blocks import BlockPool
from epdjax.serving.request import Request


@dataclasses.dataclass
class Arrival:
    """One content that is being encoded or moved.

    Attributes:
        blocks: where it will be.
        waiting: (request, unit index) of those that want it.
    """

    blocks: tuple[int, ...]
    waiting: list[tuple[Request, int]]


class Arrivals:
    """All that is on its way to one P instance."""

    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._by_key: dict[Hashable, Arrival] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def held(self) -> list[int]:
        """Blocks that arrivals hold themselves, besides the requests that wait for them."""
        return [block for arrival in self._by_key.values() for block in arrival.blocks]

    def expect(self, key: Hashable, blocks: tuple[int, ...]) -> None:
        """`blocks`, held by the caller, will hold `key`."""
        self._pool.hold(blocks)
        self._by_key[key] = Arrival(blocks, [])

    def wait(self, key: Hashable, request: Request, index: int) -> tuple[int, ...]:
        """`request` wants `key` for its unit `index`; returns where it will be (the caller holds it on its own)."""
        arrival = self._by_key[key]
        arrival.waiting.append((request, index))
        return arrival.blocks

    def get(self, key: Hashable) -> Arrival | None:
        return self._by_key.get(key)

    def landed(self, key: Hashable) -> list[tuple[Request, int]]:
        """The MM tokens are there; returns who waited for them."""
        arrival = self._by_key.pop(key)
        self._pool.publish(key, arrival.blocks)
        self._pool.give_back(arrival.blocks)
        return arrival.waiting

    def failed(self, key: Hashable) -> list[tuple[Request, int]]:
        """They will not come; returns who waited for them."""
        arrival = self._by_key.pop(key, None)
        if arrival is None:
            return []
        self._pool.give_back(arrival.blocks)
        return arrival.waiting

    def leave(self, request: Request) -> None:
        """`request` does not wait any longer."""
        for arrival in self._by_key.values():
            arrival.waiting = [(who, index) for who, index in arrival.waiting if who is not request]

    def unwanted(self, key: Hashable) -> bool:
        """Whether nobody waits for what is on its way under `key`."""
        arrival = self._by_key.get(key)
        return arrival is None or not arrival.waiting
