"""The engine's side of a request: the data that the scheduler only counts."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from epdjax.models.media import EncodeUnit, MediaItem, Prompt
from epdjax.serving.content import ContentKeys
from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.errors import RequestError, TooLong
from epdjax.serving.growing import Prefix
from epdjax.serving.outputs import CompletionOutput, FinishReason, RequestOutput, TokenLogprob
from epdjax.serving.params import SamplingParams
from epdjax.serving.request import RequestSpec
from epdjax.serving.rows import SEEDED, settings_of, wants_of
from epdjax.serving.sampling import Sampled
from epdjax.serving.token_bytes import TokenBytes

Sink = Callable[[RequestOutput | RequestError], None]
"""Called from the engine's thread with each snapshot, and at the end with the last one or an error. Must not block."""


@dataclasses.dataclass(eq=False)
class LiveUnit:
    """An encode unit of a request, and where its MM tokens go.

    Attributes:
        unit: its inputs.
        count: how many tokens it makes.
        positions, taps, tokens: int32 ``[n]``: which entry of ``mm_rows`` reads which of its tokens.
    """

    unit: EncodeUnit
    count: int
    positions: np.ndarray
    taps: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(eq=False)
class LiveRequest:
    """A request being served.

    Attributes:
        spec: what the scheduler knows.
        prompt: arrays over the prompt's tokens, as `steps.prefill` takes them (without the batch axis). ``mm_rows``,
            -1 at first, is filled in before the first chunk is run, and again after a preemption.
        units: all encode units, in prompt order.
        prompt_ids: the prompt's tokens, int32.
        rope_delta: from a position of the answer to its rotary position.
        settings: what its rows always say, see `rows.settings_of`.
        stop_token_ids: tokens that end the answer.
        index: the number of this answer among those to the same prompt.
        tokens: the answer so far. logprobs: those of its tokens, where asked for. Views of them, and of the text that
            the detokenizer shows, go out with each token: they only ever grow.
        followers: requests that enter when this one has its first token, to find its prompt's KV.
        cached_tokens: of the prompt, those whose KV was there already.
        placed: the MM blocks that ``mm_rows`` was filled in for.
    """

    spec: RequestSpec
    prompt: dict[str, np.ndarray]
    units: list[LiveUnit]
    prompt_ids: np.ndarray
    rope_delta: int
    settings: tuple[np.ndarray, np.ndarray]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    detokenizer: Detokenizer
    token_bytes: TokenBytes
    sink: Sink
    index: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    followers: list["LiveRequest"] = dataclasses.field(default_factory=list)
    cached_tokens: int = 0
    placed: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def make(
        cls,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        model: Any,
        unit_sizes: tuple[int, ...],
        keys: ContentKeys,
        max_tokens: int,
        seed: int,
        eos_token_ids: frozenset[int],
        detokenizer: Detokenizer,
        token_bytes: TokenBytes,
        sink: Sink,
        index: int = 0,
        priority: int = 0,
        timeout_s: float = math.inf,
        slo_s: float = math.inf,
        client: str = "",
        user: str = "",
        answers: int = 1,
        follows: str = "",
    ) -> "LiveRequest":
        """Lay out a processed prompt unit by unit.

        Args:
            model: the model's config.
            unit_sizes: declared sizes of encode units.
            keys: of the prompt's contents.
            seed: int32.
            priority, timeout_s, slo_s, client, user, answers, follows: see `RequestSpec`.

        Raises:
            TooLong: a unit is larger than any of them.
        """
        units = [unit for item in prompt.media for unit in item.units]
        largest = max((unit.size for unit in units), default=0)
        if largest > unit_sizes[-1]:
            raise TooLong(
                f"a picture or clip makes an encode unit of size {largest}, the largest served is {unit_sizes[-1]}; "
                "send a smaller one, or restart with a larger --max-model-len"
            )
        spec = RequestSpec(
            request_id,
            prompt_tokens=len(prompt.token_ids),
            max_tokens=max_tokens,
            unit_tokens=tuple(unit.tokens for unit in units),
            media_bytes=sum(item.nbytes for item in prompt.media),
            unit_buckets=tuple(bisect.bisect_left(unit_sizes, unit.size) for unit in units),
            unit_keys=keys.units,
            unit_starts=_starts(prompt),
            block_keys=keys.blocks,
            whole=() if prompt.sees is None else _whole_spans(prompt.sees),
            priority=priority,
            timeout_s=timeout_s,
            slo_s=slo_s,
            client=client,
            user=user,
            answers=answers,
            follows=follows,
        )
        return cls(
            spec,
            _prompt_arrays(prompt, model),
            _lay_out(prompt),
            prompt.token_ids,
            prompt.rope_delta,
            settings_of(params, seed, prompt.rope_delta, len(prompt.token_ids)),
            params,
            frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids),
            detokenizer,
            token_bytes,
            sink,
            index,
        )

    @property
    def seeded(self) -> bool:
        """Whether its tokens depend on what is in its slot."""
        return wants_of(self.params) & SEEDED != 0

    @property
    def known(self) -> int:
        """How many tokens there are on the host, prompt and answer."""
        return len(self.prompt_ids) + len(self.tokens)

    @property
    def known_tokens(self) -> np.ndarray:
        """They themselves, int32."""
        return np.concatenate([self.prompt_ids, np.array(self.tokens, np.int32)])

    def place(self, mm_blocks: tuple[tuple[int, ...], ...], mm_block_size: int) -> None:
        """Note where the units' MM tokens lie."""
        if mm_blocks == self.placed:
            return
        for unit, blocks in zip(self.units, mm_blocks, strict=True):
            rows = pool_rows(blocks, unit.count, mm_block_size)
            self.prompt["mm_rows"][unit.positions, unit.taps] = rows[unit.tokens]
        self.placed = mm_blocks

    def span(self, start: int, end: int) -> dict[str, np.ndarray]:
        """The arrays of `prompt` for tokens ``start .. end`` of prompt and answer so far; a preempted request is
        prefilled again with both."""
        length = self.spec.prompt_tokens
        if end <= length:
            return {name: array[start:end] for name, array in self.prompt.items()}
        answer = self._answer_arrays(np.arange(max(start, length), end, dtype=np.int32))
        return {name: np.concatenate([array[start:length], answer[name]]) for name, array in self.prompt.items()}

    def _answer_arrays(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """What `_prompt_arrays` is to the prompt: plain text at `positions`, as decode steps ran it."""
        first = self.spec.prompt_tokens
        tokens = np.array(self.tokens[positions[0] - first : positions[-1] + 1 - first], np.int32)
        arrays = {"tokens": tokens, "sees": positions}
        for name, filler in (("mm_rows", -1), ("mm_weights", 0)):
            if name in self.prompt:
                shape = (len(positions), self.prompt[name].shape[1])
                arrays[name] = np.full(shape, filler, self.prompt[name].dtype)
        arrays["rope"] = np.repeat((positions + self.rope_delta)[:, None], 3, axis=1)
        return arrays

    def accept(self, sampled: Sampled, row: int) -> bool:
        """Take the next token of the answer from a row of what a step sampled; returns whether it ends it."""
        token = int(sampled.tokens[row])
        self.tokens.append(token)
        if self.params.logprobs is not None and sampled.logprobs is not None:
            first = not self.detokenizer.begun
            self.logprobs.append(self.token_bytes.logprob(token, sampled.logprobs, row, self.params.logprobs, first))
        if token in self.stop_token_ids:
            return True
        self.detokenizer.push(token, look=len(self.tokens) > self.params.min_tokens)
        return self.detokenizer.stopped

    def finish(self) -> None:
        """No more tokens come."""
        self.detokenizer.finish()

    def output(self, reason: FinishReason | None) -> RequestOutput:
        """A snapshot of the answer. While it goes on it costs the same however long that is; the last one is whole."""
        text, tokens, logprobs = self.detokenizer.shown.view(), Prefix(self.tokens), Prefix(self.logprobs)
        shown = None if self.params.logprobs is None else logprobs
        answer = CompletionOutput(self.index, text, tokens, None, shown)
        if reason is not None:
            whole = None if shown is None else tuple(shown)
            answer = CompletionOutput(self.index, str(text), tuple(tokens), reason, whole)
        spec, ids, finished = self.spec, cast(Sequence[int], self.prompt_ids), reason is not None
        return RequestOutput(spec.request_id, spec.prompt_tokens, (answer,), finished, self.cached_tokens, ids)


def pool_rows(blocks: Sequence[int], tokens: int, block_size: int) -> np.ndarray:
    """Rows of an MM pool that `tokens` MM tokens in `blocks` take, int32 ``[tokens]``."""
    within = np.arange(tokens)
    return np.asarray(blocks, np.int32)[within // block_size] * block_size + within % block_size


def _starts(prompt: Prompt) -> tuple[int, ...]:
    """The first position that reads each unit; of a mixed item any position may read any unit."""
    starts = []
    for item, positions in _positions(prompt):
        first = 0
        for unit in item.units:
            starts.append(int(positions[0 if item.mix is not None else first]))
            first += unit.tokens
    return tuple(starts)


def _prompt_arrays(prompt: Prompt, model: Any) -> dict[str, np.ndarray]:
    length = len(prompt.token_ids)
    arrays = {"tokens": prompt.token_ids, "mm_rows": np.full((length, model.mm_taps), -1, np.int32)}
    if model.mm_taps > 1:
        weights = arrays["mm_weights"] = np.zeros((length, model.mm_taps), np.float32)
        for item, positions in _positions(prompt):
            if item.mix is None:
                weights[positions, 0] = 1
            else:
                weights[positions] = item.mix.weights
    counted = np.arange(length, dtype=np.int32)
    if model.text.rope.sections:
        plain = np.broadcast_to(counted[:, None], (length, 3))
        arrays["rope"] = plain if prompt.rope_positions is None else prompt.rope_positions
    if model.mm_bidirectional:
        arrays["sees"] = counted if prompt.sees is None else prompt.sees
    return arrays


def _positions(prompt: Prompt) -> list[tuple[MediaItem, np.ndarray]]:
    """Each item with its MM positions."""
    ends = np.cumsum([item.tokens for item in prompt.media])
    return list(zip(prompt.media, np.split(prompt.mm_positions, ends[:-1]))) if prompt.media else []


def _lay_out(prompt: Prompt) -> list[LiveUnit]:
    laid = []
    for item, positions in _positions(prompt):
        if item.mix is None:
            rows, taps, tokens = positions, np.zeros(item.tokens, np.int32), np.arange(item.tokens)
        else:
            rows = np.repeat(positions, item.mix.rows.shape[1])
            taps = np.tile(np.arange(item.mix.rows.shape[1]), item.tokens)
            tokens = item.mix.rows.reshape(-1)
        start = 0
        for unit in item.units:
            mine = (tokens >= start) & (tokens < start + unit.tokens)
            laid.append(LiveUnit(unit, unit.tokens, rows[mine], taps[mine], tokens[mine] - start))
            start += unit.tokens
    return laid


def _whole_spans(sees: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, end) of the runs of tokens that see beyond themselves, up to what they see."""
    spans: list[tuple[int, int]] = []
    for start in np.flatnonzero(sees > np.arange(len(sees))):
        if not spans or start >= spans[-1][1]:
            spans.append((int(start), int(sees[start]) + 1))
    return tuple(spans)
