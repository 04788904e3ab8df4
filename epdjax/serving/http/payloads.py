"""Media taken out of a request's body before it is parsed, so that what is parsed is small.

A body of 60 MB is nearly all base64. As a string of Python's it would be there once more, and no other thread could run
while it is made. Here the base64 stays where it is, and a short mark takes its place in the JSON; whoever finds the
mark asks for what it stands for. The body is looked through in windows, between which other threads may run.
"""

import re
import secrets
from collections.abc import Iterator

import pydantic_core

from epdjax.serving.errors import TooLong
from epdjax.serving.media.parts import TextBounds
from epdjax.serving.media.sources import DataURL

WINDOW = 1 << 20
LEAST = 4096  # bytes of base64 that are worth the trouble

# The beginnings of a data URL, and of what `input_audio` holds.
_START = b'"data'
_HEAD = re.compile(rb'"data(?::(?:[^"\\,]|\\/){0,200};\s*base64,|"\s*:\s*")', re.IGNORECASE)

BYTES_PER_CHARACTER = 6  # of JSON at most: \u0041
BYTES_PER_PART = 512  # a message or part, its text and media left out
MOST_OTHER_BYTES = 1 << 20  # all fields but the messages
VALUES_PER_PART = 16
MOST_OTHER_VALUES = 10_000


class Payloads:
    """The base64 of one body.

    Args:
        body: of the request.

    Attributes:
        json: the body, with marks in the place of long base64.
    """

    def __init__(self, body: bytes | bytearray):
        self._mark = f"#{secrets.token_hex(8)}."
        self._found: list[memoryview] = []
        view, done = memoryview(body), 0
        pieces: list[bytes | memoryview] = []
        for start, end in _long_strings(body):
            escaped = _find(body, b"\\", start, end) >= 0
            base64 = _unescaped(view[start:end]) if escaped else view[start:end]
            if base64 is None:
                continue
            pieces += [view[done:start], f"{self._mark}{len(self._found)}".encode()]
            self._found.append(base64)
            done = end
        self.json = b"".join([*pieces, view[done:]]) if pieces else body

    def check(self, bounds: TextBounds) -> None:
        """Refuse JSON that is longer, or of more values, than any request that fits the context. Mere brackets would
        take forty times their size as objects, and seconds in which no other thread runs.

        Raises:
            TooLong: says so.
        """
        most = BYTES_PER_CHARACTER * bounds.characters + BYTES_PER_PART * bounds.parts + MOST_OTHER_BYTES
        values = bounds.characters + VALUES_PER_PART * bounds.parts + MOST_OTHER_VALUES
        if len(self.json) > most or sum(map(_values, _windows(self.json))) > values:
            raise TooLong(
                "the request's body has more text or values than its context could hold; shorten it (media are not "
                "counted where they are written as 'data:image/png;base64,...')"
            )

    def url(self, text: str) -> str | DataURL:
        """What a client gave for media: a string as it is, or what its mark stands for."""
        head, mark, index = text.partition(self._mark)
        return DataURL(head, self._found[int(index)]) if mark else text

    def text(self, text: str) -> str:
        """A text as the client sent it: one may look like media."""
        return str(self.url(text))


def _long_strings(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(start, end) of what may be long base64: it fills the rest of a string."""
    at = 0
    while (at := _find(body, _START, at)) >= 0:
        head = _HEAD.match(body, at, at + 300)
        at += len(_START)
        if head is None:
            continue
        end = _find(body, b'"', head.end())
        if end < 0:
            return
        if end - head.end() >= LEAST:
            yield head.end(), end
            at = end


def _unescaped(data: memoryview) -> memoryview | None:
    """What a string of JSON says in which characters are escaped (`/` by PHP, `+` by .NET); None if it is no base64, or
    goes on behind a quote."""
    try:
        return memoryview(pydantic_core.from_json(b'"' + data + b'"').encode("ascii"))
    except ValueError:
        return None


def _find(body: bytes | bytearray, what: bytes, start: int, end: int | None = None) -> int:
    """As `bytes.find`, in windows."""
    end = len(body) if end is None else end
    while start < end:
        found = body.find(what, start, min(end, start + WINDOW + len(what) - 1))
        if found >= 0:
            return found
        start += WINDOW
    return -1


def _windows(body: bytes | bytearray) -> Iterator[bytes | bytearray]:
    return (body[start : start + WINDOW] for start in range(0, len(body), WINDOW))


def _values(json: bytes | bytearray) -> int:
    """An upper bound of the values in a piece of JSON, but for one."""
    return json.count(b",") + json.count(b"[") + json.count(b"{")
