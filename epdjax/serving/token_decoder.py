"""What a tokenizer's decoder makes of tokens, for text that comes token by token.

A decoder is a chain of steps over all tokens of a text. What matters here is how a token depends on its neighbours:
in byte-level tokenizers (GPT-2) characters may be spread over tokens; in those with byte fallback (SentencePiece) a run
of byte tokens is text if the whole run is UTF-8, and else every byte of it is U+FFFD; and some drop a space at the
beginning of the text. The judge is ``Tokenizer.decode`` of the `tokenizers` library.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, decoders
from transformers.convert_slow_tokenizer import bytes_to_unicode

REPLACEMENT = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}

Spelling = Callable[[str, bool], str]
"""(token, whether it is the first of the text) to what a step that looks at tokens one by one makes of it."""


class TokenDecoder:
    """The decoder of a tokenizer, taken apart. Holds nothing of any text; safe to use from several threads.

    Attributes:
        byte_level: tokens are spelt in characters that stand for bytes.
        byte_fallback: some tokens are bytes (``<0x0A>``).
        cut: (character, how many of it are dropped at the beginning of the text).
    """

    def __init__(self, tokenizer: Any):
        """
        Args:
            tokenizer: a ``tokenizers.Tokenizer``.

        Raises:
            ValueError: its decoder has a step that text cannot be streamed through, named.
        """
        self._tokenizer = tokenizer
        self._special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._spellings: list[Spelling] = []
        self.byte_level = self.byte_fallback = False
        self.cut = ("", 0)
        if tokenizer.decoder is None:
            self._spellings.append(lambda piece, first: piece if first else f" {piece}")
        else:
            self._read(_flat(json.loads(tokenizer.decoder.__getstate__())))

    def _read(self, steps: list[dict[str, Any]]) -> None:
        fused = False
        for step in steps:
            kind, joined = step["type"], fused or self.byte_level or self.byte_fallback
            if kind == "Fuse":
                fused = True
            elif kind == "Strip" and fused and not (step["stop"] or self.byte_level or self.cut[1]):
                self.cut = (step["content"], step["start"])
            elif kind == "ByteLevel" and not joined:
                self.byte_level = True
            elif kind == "ByteFallback" and not joined:
                self.byte_fallback = True
            elif kind in _SPELLINGS and not joined:
                self._spellings.append(_SPELLINGS[kind](step))
            else:
                where = " in this place" if kind in _SPELLINGS or kind.startswith("Byte") else ""
                raise ValueError(
                    f"the tokenizer's decoder has a step {kind!r}{where}, through which text cannot be streamed; "
                    "supported: ByteLevel, or Replace, Strip and Metaspace, then ByteFallback, Fuse and a Strip of the "
                    "beginning"
                )

    def piece(self, token_id: int, first: bool) -> str | None:
        """A token of a text, after the steps that look at tokens one by one; None if it is no text: a special token, or
        an id without a token. `first`: no other token was text before."""
        piece = self._tokenizer.id_to_token(token_id)
        return None if piece is None or piece in self._special else self._spelt(piece, first)

    def data(self, token_id: int, first: bool = False) -> bytes:
        """The bytes a token stands for, special or not, as the first of a text or later; none for ids without a
        token."""
        piece = self._spelt(self._tokenizer.id_to_token(token_id) or "", first)
        if self.byte_level:
            return level_bytes(piece)
        byte = fallback_byte(piece) if self.byte_fallback else None
        data = piece.encode() if byte is None else byte
        content, count = self.cut
        for _ in range(count if first else 0):
            data = data.removeprefix(content.encode())
        return data

    def _spelt(self, piece: str, first: bool) -> str:
        for spelling in self._spellings:
            piece = spelling(piece, first)
        return piece


class TextStream:
    """One text on its way: takes tokens and says what each adds.

    Attributes:
        begun: a token that is text has come.
    """

    def __init__(self, decoder: TokenDecoder):
        self._decoder = decoder
        self._cut, self._left = decoder.cut  # how many characters may still be dropped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace" if decoder.byte_level else "strict")
        self._run: list[str] = []  # of a run of byte tokens that has been UTF-8 so far: its characters
        self._run_bytes = 0
        self._broken = False  # the run can never be UTF-8
        self.begun = False

    def step(self, token_id: int) -> tuple[str, str]:
        """Add a token.

        Returns:
            Two texts: what is certain now and was not before, and what is new with this token. They differ where bytes
            become characters only if their whole run is UTF-8: such a character is new at once, and certain when the
            run has ended.
        """
        piece = self._decoder.piece(token_id, first=not self.begun)
        if piece is None:
            return "", ""
        self.begun = True
        if self._decoder.byte_level:
            return _both(self._utf8.decode(level_bytes(piece)))
        byte = fallback_byte(piece) if self._decoder.byte_fallback else None
        if byte is not None:
            return self._add_byte(byte)
        before, lost = self._end_run()
        text = self._without_cut(piece)
        return before + text, lost + text

    def end(self) -> tuple[str, str]:
        """No more tokens come; returns what `step` does."""
        if self._decoder.byte_level:
            return _both(self._utf8.decode(b"", True))
        return self._end_run()

    def run(self) -> str:
        """What would be certain if the run of bytes ended here, where that is text."""
        return "".join(self._run)

    def _add_byte(self, byte: bytes) -> tuple[str, str]:
        if self._broken:
            return _both(REPLACEMENT)
        self._run_bytes += 1
        try:
            text = self._without_cut(self._utf8.decode(byte))
        except UnicodeDecodeError:
            return _both(self._break_run())
        if text:
            self._run.append(text)
        return "", text

    def _break_run(self) -> str:
        self._broken = True
        self._run.clear()
        return self._without_cut(REPLACEMENT * self._run_bytes)

    def _end_run(self) -> tuple[str, str]:
        half, _ = self._utf8.getstate()
        ended = _both(self._break_run()) if half and not self._broken else (self.run(), "")
        self._utf8.reset()
        self._run.clear()
        self._run_bytes, self._broken = 0, False
        return ended

    def _without_cut(self, text: str) -> str:
        while self._left and text:
            if text[0] != self._cut:
                self._left = 0
                break
            text, self._left = text[1:], self._left - 1
        return text


def level_bytes(piece: str) -> bytes:
    """Of a byte-level token; one with characters that stand for no byte is taken as it is."""
    try:
        return bytes(_BYTE_OF[char] for char in piece)
    except KeyError:
        return piece.encode()


def fallback_byte(piece: str) -> bytes | None:
    """The byte that a token such as ``<0x0A>`` is; None for others."""
    match = _BYTE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else None


def _both(text: str) -> tuple[str, str]:
    return text, text


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return [some for one in decoder["decoders"] for some in _flat(one)] if decoder["type"] == "Sequence" else [decoder]


def _replace(step: dict[str, Any]) -> Spelling:
    pattern = step["pattern"]
    if (text := pattern.get("String")) is not None:
        return lambda piece, first: piece.replace(text, step["content"])
    decoder = decoders.Replace(Regex(pattern["Regex"]), step["content"])  # the library's own regular expressions
    return lambda piece, first: decoder.decode([piece])


def _strip(step: dict[str, Any]) -> Spelling:
    decoder = decoders.Strip(step["content"], step["start"], step["stop"])
    return lambda piece, first: decoder.decode([piece])


def _metaspace(step: dict[str, Any]) -> Spelling:
    at_first = " " if step["prepend_scheme"] == "never" else ""
    return lambda piece, first: piece.replace(step["replacement"], at_first if first else " ")


_SPELLINGS: dict[str, Callable[[dict[str, Any]], Spelling]] = {
    "Replace": _replace,
    "Strip": _strip,
    "Metaspace": _metaspace,
}
