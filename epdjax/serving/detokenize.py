"""Tokens to text, one at a time, stopping at stop strings and never showing half a character."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text of one answer as its tokens arrive.

    Attributes:
        text: what may be shown: whole characters, and nothing that could still turn out to begin a stop string.
        stopped: a stop string has appeared; `text` ends before it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        """
        Args:
            tokenizer: a ``tokenizers.Tokenizer``.
            stop: strings that end the answer.
        """
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._longest = max((len(s) for s in stop), default=0)
        self._all = ""
        self.text = ""
        self.stopped = False

    def push(self, token_id: int, look: bool = True) -> None:
        """Add a token; without `look` no stop string may end in it."""
        piece = self._stream.step(self._tokenizer, token_id)
        if not piece or self.stopped:
            return
        old = len(self._all)
        self._all += piece
        # A match may straddle the old end, but not end before it: what was not looked at then stays so.
        starts = (self._all.find(s, max(0, old - len(s) + 1)) for s in self._stop) if look else ()
        found = [at for at in starts if at >= 0]
        if found:
            self._all = self._all[: min(found)]
            self.stopped = True
        self.text = self._all if self.stopped else self._all[: len(self._all) - self._held_back()]

    def finish(self) -> None:
        """No more tokens come: what was held back for a stop string that did not appear is text after all."""
        self.text = self._all

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(self._longest - 1, len(self._all)), 0, -1):
            if any(s.startswith(self._all[-size:]) for s in self._stop):
                return size
        return 0
