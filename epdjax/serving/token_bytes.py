"""What bytes a single token stands for. A tokenizer's own `decode` cannot say: it shows half a character as U+FFFD."""

import json
import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from epdjax.serving.outputs import TokenLogprob
from epdjax.serving.sampling import Logprobs

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not know (vLLM, OpenAI)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes and text of a tokenizer's tokens; remembers those it was asked for."""

    def __init__(self, tokenizer: Any):
        """
        Args:
            tokenizer: a ``tokenizers.Tokenizer``, byte-level (GPT-2) or of SentencePiece's kind.
        """
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        self._known: dict[int, tuple[str, bytes]] = {}
        decoders = _flat(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder else []
        kinds = {decoder["type"] for decoder in decoders}
        self._byte_of = {char: byte for byte, char in bytes_to_unicode().items()} if "ByteLevel" in kinds else None
        self._byte_fallback = "ByteFallback" in kinds
        self._replaced = [(d["pattern"]["String"], d["content"]) for d in decoders if "String" in d.get("pattern", {})]
        self._replaced += [(d["replacement"], " ") for d in decoders if d["type"] == "Metaspace"]

    def text(self, token_id: int) -> tuple[str, bytes]:
        """A token's text, with U+FFFD for what is no whole character, and its bytes; empty for ids without a token."""
        known = self._known.get(token_id)
        if known is None:
            data = self._bytes(token_id)
            known = self._known[token_id] = (data.decode("utf-8", "replace"), data)
        return known

    def logprob(self, token_id: int, logprobs: Logprobs, row: int, count: int) -> TokenLogprob:
        """The entry of a sampled token, given what its step made of that row; with the `count` likeliest tokens."""
        likeliest = zip(logprobs.ids[row, :count].tolist(), logprobs.top[row, :count].tolist())
        top = tuple(self._entry(some, logprob) for some, logprob in likeliest)
        return self._entry(token_id, float(logprobs.chosen[row]), top)

    def _entry(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token_id, max(logprob, LEAST_LOGPROB), *self.text(token_id), top)

    def _bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        piece = added or self._tokenizer.id_to_token(token_id) or ""
        if self._byte_of is not None:
            return piece.encode() if added else bytes(self._byte_of[char] for char in piece)
        if self._byte_fallback and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return [some for one in decoder["decoders"] for some in _flat(one)] if decoder["type"] == "Sequence" else [decoder]
