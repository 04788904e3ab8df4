"""Encode results that wait on their E instance until their rows have been moved to all the P instances they go to."""

import dataclasses

from epdjax.serving.ledger import Ledger


@dataclasses.dataclass
class _Staged:
    ledger: Ledger
    blocks: tuple[int, ...]
    moves_left: int | None = None  # None: still being encoded


class Staging:
    """Counts the moves each encode result still waits for, and gives its staging block back after the last."""

    def __init__(self) -> None:
        self._staged: dict[int, _Staged] = {}

    def __contains__(self, encode_id: int) -> bool:
        return encode_id in self._staged

    def __len__(self) -> int:
        return len(self._staged)

    def begin(self, encode_id: int, ledger: Ledger) -> bool:
        """Take a staging block for a new encode; False where the instance has none left."""
        blocks = ledger.pools["staging"].take(1)
        if blocks is None:
            return False
        self._staged[encode_id] = _Staged(ledger, blocks)
        return True

    def encoded(self, encode_id: int, moves: int) -> None:
        """The result exists and `moves` moves will fetch it."""
        self._staged[encode_id].moves_left = moves
        if not moves:
            self.discard(encode_id)

    def moved(self, encode_id: int) -> None:
        """One of the moves has ended, well or not."""
        staged = self._staged[encode_id]
        assert staged.moves_left is not None
        staged.moves_left -= 1
        if not staged.moves_left:
            self.discard(encode_id)

    def discard(self, encode_id: int) -> None:
        staged = self._staged.pop(encode_id)
        staged.ledger.pools["staging"].give_back(staged.blocks)

    def held_by(self, instance: str) -> list[int]:
        """Staging blocks in use on an instance."""
        return [block for s in self._staged.values() if s.ledger.name == instance for block in s.blocks]
