"""How a request wants its answer sampled. Validated where it enters, frozen afterwards."""

import dataclasses
import math

from epdjax.serving.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_CHARS = 256


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

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r}", param=name)


def _real(name: str, value: object, low: float, high: float) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high:  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}, not {value!r}", param=name)
