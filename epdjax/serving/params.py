"""How a request wants its answer sampled, and how soon. Validated where it enters, frozen afterwards."""

import dataclasses
import math
from collections.abc import Mapping

from epdjax.serving.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 300
MAX_ANSWERS = 16
MAX_LOGPROBS = 20
MAX_PRIORITY = 100
MAX_SECONDS = 1e6
MAX_NAME_CHARS = 256  # of a client or user


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Sampling settings, named as in vLLM and the OpenAI API.

    Attributes:
        max_tokens: most tokens to generate; None: what the context leaves.
        temperature: 0 means greedy.
        top_k: sample among the k likeliest tokens; 0 or -1: all of them.
        top_p: sample among the fewest tokens whose probabilities sum to at least this.
        seed: the same seed and prompt give the same answer, whatever else is being served. None: a random one.
        stop: strings that end the answer (not part of it).
        stop_token_ids: tokens that end the answer, besides the model's own end-of-sequence tokens.
        ignore_eos: go on past the model's end-of-sequence tokens.
        min_p: leave out tokens less than this many times as likely as the likeliest; 0: none. Before top_k and top_p.
        repetition_penalty: divides positive logits of all tokens in prompt and answer, and multiplies negative ones.
        presence_penalty: subtracted from the logits of tokens in the answer.
        frequency_penalty: likewise, times how often they are there.
        logit_bias: token id -> what is added to its logit, -100 to 100.
        min_tokens: the first so many tokens neither are tokens that end the answer nor complete a stop string.
        n: answers to the same prompt; each samples with a seed of its own, made of `seed` and its number.
        logprobs: give the log-probability of each token of the answer, and of so many likeliest ones; None: of none.
            Of the model's own distribution: at temperature 1, before all that is above.

    Raises:
        InvalidRequest: a value out of range, named.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, -1, 2**31 - 1)
        _real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InvalidRequest("top_p must be greater than 0; use temperature 0 for greedy decoding", param="top_p")
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**63 - 1)
        if len(self.stop) > MAX_STOPS:
            raise InvalidRequest(f"stop has {len(self.stop)} strings; at most {MAX_STOPS}", param="stop")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
                raise InvalidRequest(f"each stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
        if len(self.stop_token_ids) > MAX_STOPS:
            raise InvalidRequest(f"stop_token_ids has more than {MAX_STOPS} entries", param="stop_token_ids")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, 2**31 - 1)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 100.0)
        if self.repetition_penalty == 0:
            raise InvalidRequest(
                "repetition_penalty must be greater than 0; 1 changes nothing", param="repetition_penalty"
            )
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._check_bias()
        _whole("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}", param="min_tokens"
            )
        _whole("n", self.n, 1, MAX_ANSWERS)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    def _check_bias(self) -> None:
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidRequest(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_BIASES}", param="logit_bias"
            )
        for token, value in self.logit_bias.items():
            _whole("each token of logit_bias", token, 0, 2**31 - 1, param="logit_bias")
            _real(f"logit_bias of token {token}", value, -100.0, 100.0, param="logit_bias")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclasses.dataclass(frozen=True)
class Urgency:
    """How soon a request wants its answer, and who asks.

    Attributes:
        priority: lower goes earlier, as in vLLM. One step is worth `policies.PRIORITY_S` seconds of waiting.
        timeout_s: it ends in an error if it is not finished so many seconds after it came; None: the engine's limit.
        slo_s: its first token is due after so many seconds, which the order ``deadline`` goes by; None: the engine's.
        client: who sends it, as far as the server knows: its requests share one turn in the order ``fair``.
        user: for whom of its own users, as the client says; they share the client's turn.

    Raises:
        InvalidRequest: a value out of range, named.
    """

    priority: int = 0
    timeout_s: float | None = None
    slo_s: float | None = None
    client: str = ""
    user: str = ""

    def __post_init__(self) -> None:
        _whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        for name in ("client", "user"):
            if not isinstance(getattr(self, name), str) or len(getattr(self, name)) > MAX_NAME_CHARS:
                raise InvalidRequest(f"{name} must be a text of at most {MAX_NAME_CHARS} characters", param=name)
        for name in ("timeout_s", "slo_s"):
            if (value := getattr(self, name)) is not None:
                _real(name, value, 0.0, MAX_SECONDS)
                if value == 0:
                    raise InvalidRequest(f"{name} must be greater than 0", param=name)


def _whole(name: str, value: object, low: int, high: int, param: str | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r}", param=param or name)


def _real(name: str, value: object, low: float, high: float, param: str | None = None) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high:  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}, not {value!r}", param=param or name)
