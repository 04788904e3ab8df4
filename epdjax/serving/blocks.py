"""Pools of numbered blocks: KV blocks, MM blocks, sequence slots and encode staging are all counted here.

A block can be shared, and blocks can be kept under a key once nobody uses them any more, for whoever wants the same
content next: the KV of a prompt's beginning, the MM tokens of a picture. Kept blocks count as available; the least
recently used go first.
"""

import collections
from collections.abc import Hashable


class BlockPool:
    """Hands out block numbers and takes them back. Knows nothing of what the blocks hold.

    Block 0 is never handed out: padding is read from and written to it.
    """

    def __init__(self, capacity: int):
        """
        Args:
            capacity: blocks that can be handed out; their numbers are 1 to `capacity`.
        """
        self.capacity = capacity
        self._free = list(range(capacity, 0, -1))
        self._users: dict[int, int] = {}  # block -> how many hold it
        self._published: dict[Hashable, tuple[int, ...]] = {}
        self._key_of: dict[int, Hashable] = {}  # first block of what is published -> its key
        self._kept: collections.OrderedDict[Hashable, None] = collections.OrderedDict()  # published, held by nobody
        self._kept_blocks = 0
        self.users = 0
        """Holds on blocks; a block that two share counts twice."""

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones and those that are merely kept."""
        return len(self._free) + self._kept_blocks

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return len(self._users)

    @property
    def kept(self) -> int:
        """Blocks kept for their content."""
        return self._kept_blocks

    def take(self, count: int) -> tuple[int, ...] | None:
        """`count` blocks, or None (and nothing taken) where there are fewer."""
        if count > self.available:
            return None
        while len(self._free) < count:
            key, _ = self._kept.popitem(last=False)
            self._forget(key)
        blocks = tuple(self._free.pop() for _ in range(count))
        self._users.update(dict.fromkeys(blocks, 1))
        self.users += count
        return blocks

    def hold(self, blocks: tuple[int, ...]) -> None:
        """Hold blocks that somebody already holds.

        Raises:
            ValueError: nobody holds one of them, which is a bug.
        """
        for block in blocks:
            if block not in self._users:
                raise ValueError(f"block {block} is not held")
            self._users[block] += 1
            self.users += 1

    def give_back(self, blocks: tuple[int, ...]) -> None:
        """End a hold on blocks; the last one frees them, or keeps those that are published.

        Raises:
            ValueError: one of them is not held; the books no longer balance, which is a bug.
        """
        for block in blocks:
            if block not in self._users:
                raise ValueError(f"block {block} is not held")
            self._users[block] -= 1
            self.users -= 1
        idle = [block for block in dict.fromkeys(blocks) if self._users[block] == 0]
        for block in idle:
            del self._users[block]
        # Last first: of a prompt's blocks, whose keys chain, the later ones are of no use without the earlier.
        kept: set[int] = set()
        for block in reversed(idle):
            key = self._key_of.get(block)
            if key is not None:
                self._kept[key] = None
                kept.update(self._published[key])
        self._kept_blocks += len(kept)
        self._free.extend(block for block in idle if block not in kept)

    def publish(self, key: Hashable, blocks: tuple[int, ...]) -> None:
        """Say what held blocks contain. Where the key is known already, the older copy stays the one to share."""
        if key not in self._published and blocks and blocks[0] not in self._key_of:
            self._published[key] = blocks
            self._key_of[blocks[0]] = key

    def knows(self, key: Hashable) -> bool:
        """Whether something is published under `key`."""
        return key in self._published

    def share(self, key: Hashable) -> tuple[int, ...] | None:
        """Hold what is published under `key`; None where nothing is."""
        blocks = self._published.get(key)
        if blocks is None:
            return None
        if key in self._kept:
            del self._kept[key]
            self._kept_blocks -= len(blocks)
        for block in blocks:
            self._users[block] = self._users.get(block, 0) + 1
        self.users += len(blocks)
        return blocks

    def forget(self) -> None:
        """Nothing published is true any more: the memory behind the blocks is lost."""
        for key in list(self._published):
            self.unpublish(key)

    def unpublish(self, key: Hashable) -> None:
        """What is published under `key`, if anything, is not to be found any more."""
        if key in self._kept:
            del self._kept[key]
            self._forget(key)
        elif key in self._published:
            del self._key_of[self._published.pop(key)[0]]

    def _forget(self, key: Hashable) -> None:
        blocks = self._published.pop(key)
        del self._key_of[blocks[0]]
        self._free.extend(blocks)
        self._kept_blocks -= len(blocks)


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that `tokens` tokens fill, the last one perhaps partly."""
    return -(-tokens // block_size)
