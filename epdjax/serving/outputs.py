"""What a request gives back while it runs and when it ends."""

import dataclasses
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """The answer so far: `text` and `token_ids` are cumulative; the text never ends in half a character."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A snapshot of one request. The last one has `finished` set.

    `cached_tokens` of the prompt's tokens were not run again: their KV was there.
    """

    request_id: str
    prompt_tokens: int
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    cached_tokens: int = 0
