"""Fixed pools of numbered blocks: KV blocks, MM blocks, sequence slots and encode staging are all counted here."""


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
        self._held: set[int] = set()

    @property
    def available(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        return len(self._held)

    def take(self, count: int) -> tuple[int, ...] | None:
        """`count` blocks, or None (and nothing taken) where there are fewer."""
        if count > len(self._free):
            return None
        blocks = tuple(self._free.pop() for _ in range(count))
        self._held.update(blocks)
        return blocks

    def give_back(self, blocks: tuple[int, ...]) -> None:
        """Return blocks that were taken.

        Raises:
            ValueError: one of them is not held; the books no longer balance, which is a bug.
        """
        for block in blocks:
            if block not in self._held:
                raise ValueError(f"block {block} is not held")
            self._held.remove(block)
            self._free.append(block)


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that `tokens` tokens fill, the last one perhaps partly."""
    return -(-tokens // block_size)
