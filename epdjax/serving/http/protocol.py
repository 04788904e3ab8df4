"""The request object of chat completions, as OpenAI defines it and vLLM extends it.

A field is either used, or known to change nothing (`user`, `metadata`, ...), or refused by name. None is silently
ignored, so an answer is never something else than what was asked for.
"""

import codecs
import difflib
from typing import Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epdjax.serving.errors import InvalidRequest
from epdjax.serving.params import MAX_LOGPROBS, SamplingParams, Urgency

MAX_LISTED = 200

# Fields without influence on the answer (or, like tool_choice, none without another field that is refused).
HARMLESS = frozenset(
    {
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "parallel_tool_calls",
    }
)

# Known fields that are not supported, and the values of theirs that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "prompt_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "kv_transfer_params": (),
}


class StreamOptions(BaseModel):
    """How a stream reports usage."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = Field(
        default=None, description="Send a last chunk with the usage of the whole request."
    )
    continuous_usage_stats: bool | None = Field(default=None, description="Send the usage so far in all chunks (vLLM).")
    include_obfuscation: bool | None = Field(
        default=None, description="Accepted for OpenAI's clients; nothing is padded here."
    )


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. `null` means the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str = Field(description="The served model's name.")
    messages: list[dict[str, Any]] = Field(
        description="Messages of the roles system, developer, user and assistant. Their content is a string, or a list "
        "of parts: text, and in user messages image_url, video_url, audio_url and input_audio."
    )
    max_completion_tokens: int | None = Field(
        default=None, description="Most tokens to generate; absent: what is left."
    )
    max_tokens: int | None = Field(default=None, description="The older name of max_completion_tokens.")
    temperature: float | None = Field(default=None, description="0 means greedy. Absent: 1.")
    top_p: float | None = Field(
        default=None, description="Sample among the fewest tokens with at least this probability."
    )
    top_k: int | None = Field(default=None, description="Sample among the k likeliest tokens; 0 or -1: all (vLLM).")
    seed: int | None = Field(default=None, description="The same seed and prompt give the same answer.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end the answer.")
    stop_token_ids: list[int] | None = Field(default=None, description="Tokens that end the answer (vLLM).")
    ignore_eos: bool | None = Field(default=None, description="Go on past the end-of-sequence token (vLLM).")
    min_p: float | None = Field(
        default=None, description="Leave out tokens less than this many times as likely as the likeliest (vLLM)."
    )
    presence_penalty: float | None = Field(
        default=None, description="Subtracted from the logits of tokens in the answer."
    )
    frequency_penalty: float | None = Field(default=None, description="Likewise, times how often they are there.")
    repetition_penalty: float | None = Field(
        default=None, description="Makes tokens of prompt and answer less likely; 1 changes nothing (vLLM)."
    )
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token id -> what is added to its logit, -100 to 100."
    )
    min_tokens: int | None = Field(default=None, description="The answer does not end before so many tokens (vLLM).")
    n: int | None = Field(default=None, description="Answers to give.")
    logprobs: bool | None = Field(default=None, description="Give the log-probability of each token of the answer.")
    top_logprobs: int | None = Field(default=None, description="And those of so many likeliest tokens in its place.")
    priority: int | None = Field(default=None, description="Lower goes earlier (vLLM). Absent: 0.")
    timeout_s: float | None = Field(
        default=None, description="Give the request up if it is not finished after so many seconds."
    )
    slo_s: float | None = Field(
        default=None, description="When its first token is due, seconds; what the order `deadline` goes by."
    )
    user: str | None = Field(
        default=None, description="For whom of the client's users; they share the client's turn in the order `fair`."
    )
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = None

    def sampling_params(self) -> SamplingParams:
        """The sampling settings.

        Raises:
            InvalidRequest: a value out of range.
        """
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ; give only max_completion_tokens", param="max_tokens"
            )
        given = {
            "max_tokens": self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop) if self.stop else None,
            "stop_token_ids": tuple(self.stop_token_ids) if self.stop_token_ids else None,
            "ignore_eos": self.ignore_eos,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {_token_id(key): value for key, value in (self.logit_bias or {}).items()},
            "min_tokens": self.min_tokens,
            "n": self.n,
            "logprobs": self._logprobs(),
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def urgency(self, client: str) -> Urgency:
        """How soon the answer is wanted, and by whom.

        Args:
            client: what the server knows of who sends it.

        Raises:
            InvalidRequest: a value out of range.
        """
        return Urgency(self.priority or 0, self.timeout_s, self.slo_s, client, self.user or "")

    def _logprobs(self) -> int | None:
        top = self.top_logprobs or 0
        if not 0 <= top <= MAX_LOGPROBS:
            raise InvalidRequest(f"top_logprobs must be from 0 to {MAX_LOGPROBS}", param="top_logprobs")
        if top and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for requests with logprobs: true; add it", param="top_logprobs")
        return top if self.logprobs else None


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10):
        raise InvalidRequest(
            f'logit_bias has the key {key[:MAX_LISTED]!r}; its keys must be token ids, such as "42"', param="logit_bias"
        )
    return int(key)


def parse_chat_request(json: bytes | bytearray) -> ChatRequest:
    """Reads a request body.

    Raises:
        InvalidRequest: not JSON, or not a chat request: one sentence that names the field.
    """
    try:
        data = pydantic_core.from_json(json.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise InvalidRequest(
            f"the request's body is not valid JSON: {error}; check its quotes, commas and encoding"
        ) from None
    if not isinstance(data, dict):
        raise InvalidRequest('the request\'s body must be a JSON object, as in {"model": ..., "messages": [...]}')
    fields = {name: value for name, value in data.items() if value is not None and name not in HARMLESS}
    for name, value in list(fields.items()):
        if name in ChatRequest.model_fields:
            continue
        _refuse_unless_neutral(name, value)
        del fields[name]
    if isinstance(options := fields.get("stream_options"), dict):
        fields["stream_options"] = {name: value for name, value in options.items() if value is not None}
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise condense(error, ChatRequest, StreamOptions) from None


def condense(error: ValidationError, *models: type[BaseModel]) -> InvalidRequest:
    """One sentence for what pydantic found in a body made of `models`: the first problem, with its path."""
    names = {name for model in models for name in model.model_fields}
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    # Alternatives of a union appear in the path as type names; a client knows only keys and positions.
    keys = [key for key in first["loc"] if isinstance(key, int) or key in names]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    problem = first["msg"].removeprefix("Input ").replace("Field required", "is missing; add it")
    if first["type"] == "extra_forbidden":
        path, problem = f"{path}.{str(first['loc'][-1])[:MAX_LISTED]}".lstrip("."), "is not a known field; leave it out"
    return InvalidRequest(f"{path or 'the request'} {problem}", param=path or None)


def _refuse_unless_neutral(name: str, value: Any) -> None:
    shown = name[:MAX_LISTED]
    if name not in NEUTRAL:
        near = difflib.get_close_matches(shown, ChatRequest.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; leave it out"
        raise InvalidRequest(f"{shown!r} is not a known field{hint}", param=shown)
    neutral = NEUTRAL[name]
    # False == 0 in Python, but "logprobs": 0 and "n": true ask for something else.
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral):
        hint = f" or give {_json(neutral[0])}" if neutral else ""
        raise InvalidRequest(f"{shown!r} is not supported; leave it out{hint}", param=shown)


def _json(value: Any) -> str:
    return pydantic_core.to_json(value).decode()
