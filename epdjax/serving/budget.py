"""Bytes that many requests hold together, never more than a bound."""

import contextlib
import threading
from collections.abc import Iterator

from epdjax.serving.errors import Overloaded


class ByteBudget:
    """A bound on bytes in use. Safe to use from any thread.

    Args:
        most: bytes that may be held at a time.
        what: what they are, for the error.
    """

    def __init__(self, most: int, what: str):
        self._most, self._what = most, what
        self._lock = threading.Lock()
        self.used = 0

    @contextlib.contextmanager
    def share(self) -> Iterator["Share"]:
        """What one holder takes, piece by piece; all of it is given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    def _take(self, share: "Share", size: int) -> None:
        with self._lock:
            if self.used > share.size and self.used + size > self._most:
                raise Overloaded(f"the server holds as many {self._what} as it can; try again soon", retry_after_s=1.0)
            self.used += size

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.used -= size


class Share:
    """One holder's part of a budget; used by one thread at a time."""

    def __init__(self, budget: ByteBudget):
        self._budget = budget
        self.size = 0

    def add(self, size: int) -> None:
        """Takes more.

        Raises:
            Overloaded: there is no more. Who is alone gets what they ask for: it was bounded when it was let in.
        """
        self._budget._take(self, size)
        self.size += size

    def release(self) -> None:
        """Gives everything back; may be called again."""
        size, self.size = self.size, 0
        self._budget._give_back(size)
