"""What bytes a single token stands for. A tokenizer's own `decode` cannot say: it shows half a character as U+FFFD."""

from epdjax.serving.outputs import TokenLogprob
from epdjax.serving.sampling import Logprobs
from epdjax.serving.token_decoder import TokenDecoder

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not know (vLLM, OpenAI)


class TokenBytes:
    """Bytes and text of a tokenizer's tokens; remembers those it was asked for."""

    def __init__(self, decoder: TokenDecoder):
        self._decoder = decoder
        self._known: dict[tuple[int, bool], tuple[str, bytes]] = {}

    def text(self, token_id: int, first: bool = False) -> tuple[str, bytes]:
        """A token's text, with U+FFFD for what is no whole character, and its bytes; empty for ids without a token.

        The bytes of all tokens of an answer that are text, put together, are those of its text, or where that has
        U+FFFD, those that are no UTF-8.

        Args:
            token_id: of any token, special ones too.
            first: it is the first of the answer's text, where some tokenizers drop a space.
        """
        known = self._known.get((token_id, first))
        if known is None:
            data = self._decoder.data(token_id, first)
            known = self._known[token_id, first] = (data.decode("utf-8", "replace"), data)
        return known

    def logprob(self, token_id: int, logprobs: Logprobs, row: int, count: int, first: bool = False) -> TokenLogprob:
        """The entry of a sampled token, given what its step made of that row; with the `count` likeliest tokens."""
        likeliest = zip(logprobs.ids[row, :count].tolist(), logprobs.top[row, :count].tolist())
        top = tuple(self._entry(some, logprob, first) for some, logprob in likeliest)
        return self._entry(token_id, float(logprobs.chosen[row]), first, top)

    def _entry(self, token_id: int, logprob: float, first: bool, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token_id, max(logprob, LEAST_LOGPROB), *self.text(token_id, first), top)
