"""What a request gives back while it runs and when it ends."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from epdjax.serving.growing import TextView

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability, natural.

    Attributes:
        data: the bytes it stands for; several tokens may share a character.
        text: the same, with U+FFFD for what is no whole character.
        top: the likeliest tokens in its place, in order; as many as were asked for.
    """

    token_id: int
    logprob: float
    text: str
    data: bytes
    top: tuple["TokenLogprob", ...] = ()


class CompletionOutput:
    """The answer so far: `text` and `token_ids` are cumulative; the text never ends in half a character.

    Attributes:
        index: its number among the answers to one prompt.
        token_ids: of the answer; like a tuple.
        finish_reason: why it ended; None while it goes on.
        logprobs: an entry for each of `token_ids` where they were asked for, and None elsewhere; like a tuple.
    """

    __slots__ = ("_text", "finish_reason", "index", "logprobs", "token_ids")

    def __init__(
        self,
        index: int,
        text: str | TextView,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ):
        self._text, self.index, self.token_ids = text, index, token_ids
        self.finish_reason, self.logprobs = finish_reason, logprobs

    @property
    def text(self) -> str:
        """All of the text, put together when it is asked for; see `text_since`."""
        return str(self._text)

    def text_since(self, characters: int) -> str:
        """The text without its first characters, which costs only what is returned."""
        return self._text[characters:] if isinstance(self._text, str) else self._text.since(characters)

    def ended(self, reason: FinishReason) -> "CompletionOutput":
        """The same, ended."""
        return CompletionOutput(self.index, self._text, self.token_ids, reason, self.logprobs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompletionOutput):
            return NotImplemented
        return self._all() == other._all()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        index, text, token_ids, reason, logprobs = self._all()
        return f"CompletionOutput({index=}, {text=}, {token_ids=}, finish_reason={reason!r}, {logprobs=})"

    def _all(self) -> tuple[Any, ...]:
        return self.index, self.text, self.token_ids, self.finish_reason, self.logprobs


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A snapshot of one request, with each of its answers in order. The last one has `finished` set.

    Attributes:
        prompt_tokens: length of the prompt, MM tokens included. cached_tokens: of them, those that were not run again:
            their KV was there.
        prompt_ids: the prompt, in whatever form the engine has it; see `prompt_token_ids`.
    """

    request_id: str
    prompt_tokens: int
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    cached_tokens: int = 0
    prompt_ids: Sequence[int] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt's tokens, the placeholder of the model where an MM token stood; made when it is asked for."""
        return tuple(map(int, self.prompt_ids))
