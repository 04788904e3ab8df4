"""What grows while an answer is made, and views of it as it was at some time. A view costs the same however long the
answer is: nothing is copied until somebody looks at it."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Prefix(Sequence[T]):
    """The first entries of a list to which more are only ever appended. It is like a tuple of them: equal to it, and of
    the same hash; its slices are tuples."""

    __slots__ = ("_all", "_length")

    def __init__(self, growing: list[T]):
        self._all, self._length = growing, len(growing)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        where = range(self._length)[index]
        if isinstance(where, range):
            if where.step == 1:
                return tuple(self._all[where.start : where.stop])
            return tuple(self._all[i] for i in where)
        return self._all[where]

    def __iter__(self) -> Iterator[T]:
        return itertools.islice(self._all, self._length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Prefix, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Any) -> tuple[T, ...]:
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> tuple[T, ...]:
        return tuple(other) + tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


class GrowingText:
    """A text to which pieces are appended."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Characters."""
        return self._ends[-1] if self._ends else 0

    def append(self, piece: str) -> None:
        if piece:
            self._ends.append(len(self) + len(piece))
            self._pieces.append(piece)

    def view(self) -> "TextView":
        """The text as it is now."""
        return TextView(self._pieces, self._ends)


class TextView:
    """A growing text as it was once."""

    __slots__ = ("_ends", "_length", "_pieces")

    def __init__(self, pieces: list[str], ends: list[int]):
        self._pieces, self._ends, self._length = pieces, ends, len(pieces)

    def __str__(self) -> str:
        return "".join(itertools.islice(self._pieces, self._length))

    def since(self, characters: int) -> str:
        """The text without its first characters."""
        first = bisect.bisect_right(self._ends, characters, hi=self._length)
        if first == self._length:
            return ""
        rest = "".join(self._pieces[first : self._length])
        return rest[len(self._pieces[first]) - (self._ends[first] - characters) :]
