"""Bytes that many requests hold together, never more than a bound."""

import contextlib
import threading
import time
from collections.abc import Iterator

from epdjax.serving.errors import Overloaded

MOST_OF_ONE = 0.75  # of a budget: whoever holds more than all of it leaves room for others all the same


class ByteBudget:
    """A bound on bytes in use. Safe to use from any thread.

    What one holder takes counts as three quarters of the bound at most: what is larger was allowed to be when it was
    let in, two such cannot be there together, and the others go on beside it.

    Args:
        most: bytes that may be held at a time.
        what: they are, for the error.
    """

    def __init__(self, most: int, what: str):
        self._most, self._what = most, what
        self._changed = threading.Condition()
        self.used = 0

    @contextlib.contextmanager
    def share(self) -> Iterator["Share"]:
        """What one holder takes, piece by piece; all of it is given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    def _take(self, share: "Share", size: int, until: float) -> None:
        with self._changed:
            more = min(share.size + size, int(MOST_OF_ONE * self._most)) - share.counted

            def fits() -> bool:
                return share.over or self.used + more <= self._most

            if not self._changed.wait_for(fits, max(0.0, until - time.monotonic())):
                raise Overloaded(f"the server holds as many {self._what} as it can; try again soon", retry_after_s=1.0)
            if share.over:
                raise Overloaded("the request is over", retry_after_s=1.0)
            self.used += more
            share.size += size
            share.counted += more

    def _give_back(self, share: "Share") -> None:
        with self._changed:
            self.used -= share.counted
            share.size = share.counted = 0
            share.over = True
            self._changed.notify_all()


class Share:
    """One holder's part of a budget.

    Attributes:
        size: bytes taken. counted: those of them that the budget knows of.
        over: it was given back, and nothing can be taken any more.
    """

    def __init__(self, budget: ByteBudget):
        self._budget = budget
        self.size = self.counted = 0
        self.over = False

    def add(self, size: int, until: float = 0.0) -> None:
        """Takes more.

        Args:
            until: ``time.monotonic()`` until which to wait for others to give some back.

        Raises:
            Overloaded: there is no more.
        """
        self._budget._take(self, size, until)

    def release(self) -> None:
        """Gives everything back; may be called again."""
        self._budget._give_back(self)
