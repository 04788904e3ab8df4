"""Tokens to text, one at a time, stopping at stop strings and never showing half a character."""

from collections.abc import Sequence

from epdjax.serving.growing import GrowingText
from epdjax.serving.token_decoder import TextStream, TokenDecoder


class Detokenizer:
    """The text of one answer as its tokens arrive. A token costs the same however long the answer is.

    Attributes:
        shown: what may be shown: whole characters that no later token changes, and nothing that could still turn out to
            begin a stop string.
        stopped: a stop string has appeared; the text ends before it.
    """

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()):
        """
        Args:
            decoder: of the tokenizer.
            stop: strings that end the answer.
        """
        self._stream = TextStream(decoder)
        self._stop = tuple(stop)
        self._longest = max((len(s) for s in stop), default=0)
        self.shown = GrowingText()
        self._held = ""  # certain, but could still turn out to begin a stop string
        self._last = ""  # of what is held and of the run of bytes behind it: as much as can begin a stop string
        self._look = True
        self.stopped = False

    @property
    def text(self) -> str:
        """All that may be shown, put together when it is asked for."""
        return str(self.shown.view())

    @property
    def begun(self) -> bool:
        """Whether a token that is text has come."""
        return self._stream.begun

    def push(self, token_id: int, look: bool = True) -> str:
        """Add a token; without `look` no stop string may end in it. Returns what is added to the text."""
        if self.stopped:
            return ""
        self._look = look
        return self._add(*self._stream.step(token_id))

    def finish(self) -> str:
        """No more tokens come: what was held back is text after all. Returns what is added to the text."""
        if self.stopped:
            return ""
        added = self._add(*self._stream.end())
        rest, self._held = self._held, ""
        return added + self._show(rest)

    def _add(self, certain: str, new: str) -> str:
        """Take what `TextStream.step` returns."""
        # Where a run of bytes turns out to be none, what was new before has never been.
        before = self._held if certain and len(certain) == len(new) else self._last
        around = before + new
        # A match may straddle the old end, but not end before it: what was not looked at then stays so.
        starts = (around.find(s, max(0, len(before) - len(s) + 1)) for s in self._stop) if self._look else ()
        found = [at for at in starts if at >= 0]
        if found:
            self.stopped = True
            text = self._held + (certain or self._stream.run())
            self._held = ""
            return self._show(text[: len(text) - len(around) + min(found)])
        self._last = around[max(0, len(around) - self._longest + 1) :] if self._longest > 1 else ""
        if not certain:
            return ""
        text = self._held + certain
        shown = len(text) - self._to_hold(text)
        self._held = text[shown:]
        return self._show(text[:shown])

    def _show(self, text: str) -> str:
        self.shown.append(text)
        return text

    def _to_hold(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(s.startswith(text[-size:]) for s in self._stop):
                return size
        return 0
