"""The response objects of chat completions, as OpenAI defines them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core

from epdjax.serving.http.protocol import StreamOptions
from epdjax.serving.outputs import CompletionOutput, FinishReason, RequestOutput, TokenLogprob


def usage(output: RequestOutput) -> dict[str, Any]:
    """OpenAI's usage object. The prompt counts once, however many answers there are; of `cached_tokens` of it the KV
    was there already."""
    made = sum(len(answer.token_ids) for answer in output.outputs)
    return {
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": output.prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": output.cached_tokens},
    }


def completion(request_id: str, model: str, created: int, output: RequestOutput) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    choices = [_choice(answer) for answer in output.outputs]
    return _envelope(request_id, "chat.completion", model, created) | {"choices": choices, "usage": usage(output)}


def model_card(name: str, created: int) -> dict[str, Any]:
    """An entry of `GET /v1/models`."""
    return {"id": name, "object": "model", "created": created, "owned_by": "epdjax"}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + pydantic_core.to_json(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Events:
    """A stream: of each snapshot what was not sent yet, choice by choice."""

    def __init__(self, request_id: str, model: str, created: int, options: StreamOptions):
        self._envelope = _envelope(request_id, "chat.completion.chunk", model, created)
        self._options = options
        self._sent: dict[int, tuple[int, int]] = {}  # of each choice: characters, and tokens with log-probabilities
        self._ended: set[int] = set()

    def new(self, output: RequestOutput) -> bytes:
        """What is new in a snapshot, but for the end of the choices that end with it where it is the last."""
        events = []
        for index in range(len(output.outputs)):
            if index not in self._sent:
                self._sent[index] = (0, 0)
                events.append(self._chunk(output, index, {"role": "assistant", "content": ""}))
        for answer in output.outputs:
            characters, tokens = self._sent[answer.index]
            text, logprobs = answer.text_since(characters), (answer.logprobs or ())[tokens:]
            if text or logprobs:
                self._sent[answer.index] = (characters + len(text), tokens + len(logprobs))
                events.append(self._chunk(output, answer.index, {"content": text}, logprobs=logprobs or None))
        return b"".join(events) if output.finished else b"".join([*events, *self._ends(output)])

    def end(self, output: RequestOutput) -> bytes:
        """The events that end a stream, given the last snapshot."""
        last = []
        if self._options.include_usage:
            last = [event(self._envelope | {"choices": [], "usage": usage(output)})]
        return b"".join([*self._ends(output), *last, DONE])

    def _ends(self, output: RequestOutput) -> list[bytes]:
        ends = [a for a in output.outputs if a.finish_reason in ("stop", "length") and a.index not in self._ended]
        self._ended |= {answer.index for answer in ends}
        return [self._chunk(output, answer.index, {}, reason=answer.finish_reason) for answer in ends]

    def _chunk(
        self,
        output: RequestOutput,
        index: int,
        delta: Mapping[str, str],
        *,
        reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": reason}
        data = self._envelope | {"choices": [choice]}
        if self._options.continuous_usage_stats:
            data["usage"] = usage(output)
        elif self._options.include_usage:
            data["usage"] = None
        return event(data)


def _choice(answer: CompletionOutput) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    logprobs = _logprobs(answer.logprobs)
    return {"index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


def _logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = [_token(entry) | {"top_logprobs": [_token(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}


def _envelope(request_id: str, kind: str, model: str, created: int) -> dict[str, Any]:
    return {"id": request_id, "object": kind, "created": created, "model": model}
