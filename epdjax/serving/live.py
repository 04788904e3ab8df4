"""The engine's side of a request: the data that the scheduler only counts."""

import dataclasses
from collections.abc import Callable

import numpy as np

from epdjax.models.processing import Prompt
from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.errors import RequestError
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import UnitMove

Sink = Callable[[RequestOutput | RequestError], None]
"""Called from the engine's thread with each snapshot, and at the end with the last one or an error. Must not block."""


@dataclasses.dataclass(eq=False)
class LiveRequest:
    """A request being served.

    Attributes:
        spec: what the scheduler knows.
        token_ids: int32 ``[prompt_tokens]``.
        mm_rows: int32 ``[prompt_tokens]``: row of the P instance's MM pool for MM positions, -1 elsewhere; filled in as
            units are moved.
        units: per encode unit, its uint8 pixels, dropped once encoded, and its positions in the prompt.
        seed: int32.
        stop_token_ids: tokens that end the answer.
        tokens: the answer so far.
    """

    spec: RequestSpec
    token_ids: np.ndarray
    mm_rows: np.ndarray
    units: list[np.ndarray | None]
    unit_positions: list[np.ndarray]
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    detokenizer: Detokenizer
    sink: Sink
    tokens: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def make(
        cls,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        max_tokens: int,
        seed: int,
        eos_token_ids: frozenset[int],
        detokenizer: Detokenizer,
        sink: Sink,
    ) -> "LiveRequest":
        """Lay out a processed prompt unit by unit."""
        units: list[np.ndarray | None] = []
        unit_tokens: list[int] = []
        for item in prompt.media:
            units.extend(item.units_uhwc)
            unit_tokens.extend(item.shape.tokens_per_unit)
        ends = np.cumsum(unit_tokens)
        spec = RequestSpec(
            request_id,
            prompt_tokens=len(prompt.token_ids),
            max_tokens=max_tokens,
            unit_tokens=tuple(unit_tokens),
            media_bytes=sum(item.units_uhwc.nbytes for item in prompt.media),
        )
        return cls(
            spec,
            prompt.token_ids,
            np.full(len(prompt.token_ids), -1, np.int32),
            units,
            np.split(prompt.mm_positions, ends[:-1]) if unit_tokens else [],
            params,
            seed,
            frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids),
            detokenizer,
            sink,
        )

    def land(self, move: UnitMove, mm_block_size: int) -> np.ndarray:
        """Note where a unit's MM tokens lie from now on; returns their rows in the MM pool."""
        positions = self.unit_positions[move.unit.index]
        within = np.arange(len(positions))
        rows = np.asarray(move.blocks, np.int32)[within // mm_block_size] * mm_block_size + within % mm_block_size
        self.mm_rows[positions] = rows
        return rows

    def accept(self, token: int) -> bool:
        """Take the next token of the answer; returns whether it ends it."""
        self.tokens.append(token)
        if token in self.stop_token_ids:
            return True
        self.detokenizer.push(token)
        return self.detokenizer.stopped
