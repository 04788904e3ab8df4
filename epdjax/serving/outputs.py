"""What a request gives back while it runs and when it ends."""

import dataclasses
from typing import Literal

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


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """The answer so far: `text` and `token_ids` are cumulative; the text never ends in half a character.

    `logprobs` has an entry for each of `token_ids` where they were asked for, and is None elsewhere.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A snapshot of one request, with each of its answers in order. The last one has `finished` set.

    `cached_tokens` of the prompt's tokens were not run again: their KV was there.
    """

    request_id: str
    prompt_tokens: int
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    cached_tokens: int = 0
