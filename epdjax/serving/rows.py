"""The rows of a prefill or decode step: what the host says of each, packed into two arrays to keep transfers few.

A row of an int32 array holds the fields of `INTS` and then the sequence's block table; a row of a float32 array those
of `FLOATS`. `pack_rows` makes them on the host, `Rows` takes them apart inside a step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.serving.params import SamplingParams

INTS = ("start", "length", "slot", "top_k", "seed", "rope_delta", "wants", "prompt", "min_tokens")
FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
ROW_FIELDS, FLOAT_FIELDS = len(INTS), len(FLOATS)
SLOT, SETTINGS, WANTS = INTS.index("slot"), slice(INTS.index("top_k"), ROW_FIELDS), INTS.index("wants")

# What a row may want beyond temperature, top-k and top-p: bits of its field `wants`.
PENALTIES, BIAS, MIN_TOKENS, MIN_P, LOGPROBS = 1, 2, 4, 8, 16
SEEDED = PENALTIES | BIAS | MIN_TOKENS
"""Those that read the sequence's slot, which must have been seeded (see `slots`)."""


def wants_of(params: SamplingParams) -> int:
    """The bits of a request's rows."""
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
    wanted = {
        PENALTIES: penalties,
        BIAS: bool(params.logit_bias),
        MIN_TOKENS: params.min_tokens > 0,
        MIN_P: params.min_p > 0 and not params.greedy,
        LOGPROBS: params.logprobs is not None,
    }
    return sum(bit for bit, is_wanted in wanted.items() if is_wanted)


def settings_of(params: SamplingParams, seed: int, rope_delta: int, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """The fields of a request's rows that stay the same: of `INTS` those in `SETTINGS`, and all of `FLOATS`."""
    ints = [params.top_k, seed, rope_delta, wants_of(params), prompt, params.min_tokens]
    return np.array(ints, np.int32), np.array([getattr(params, name) for name in FLOATS], np.float32)


def pack_rows(rows: int, pages: int) -> tuple[np.ndarray, np.ndarray]:
    """Host arrays for a step of `rows` rows: int32 ``[rows, ROW_FIELDS + pages]``, float32 ``[rows, FLOAT_FIELDS]``.

    As they are they are padding: rows that are written to block 0 and slot 0, which belong to nobody, greedily.
    """
    floats = np.zeros((rows, FLOAT_FIELDS), np.float32)
    floats[:, FLOATS.index("top_p")] = 1.0
    floats[:, FLOATS.index("repetition_penalty")] = 1.0
    return np.zeros((rows, ROW_FIELDS + pages), np.int32), floats


def fill_row(
    ints: np.ndarray,
    floats: np.ndarray,
    settings: tuple[np.ndarray, np.ndarray],
    start: int,
    length: int,
    slot: int,
    blocks: Sequence[int],
) -> None:
    """Fill a row: `length` tokens from position `start` of the sequence in `slot`, whose KV lies in `blocks`.

    A slot of 0 means that nobody wants the row's token.
    """
    ints[:3] = start, length, slot
    ints[SETTINGS], floats[:] = settings
    if slot == 0:
        ints[WANTS] = 0
    held = blocks[: len(ints) - ROW_FIELDS]
    ints[ROW_FIELDS : ROW_FIELDS + len(held)] = held


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows of a step on the device, as they were packed. Their fields ``[b]`` are attributes: those of `INTS` and
    `FLOATS` by name, taken out where they are used, so that a branch that is not run costs no slice of its own.

    ``start`` and ``length`` are the position of the first token that is run, and how many are; ``slot`` is the
    sequence's, ``wants`` are bits (see `wants_of`), ``prompt`` is the position of the answer's first token, and the
    others are settings of `SamplingParams`.
    """

    ints: jax.Array
    floats: jax.Array

    def __getattr__(self, name: str) -> jax.Array:
        if name in INTS:
            return self.ints[:, INTS.index(name)]
        if name in FLOATS:
            return self.floats[:, FLOATS.index(name)]
        raise AttributeError(name)

    @property
    def tables(self) -> jax.Array:
        """The blocks of each row's sequence, int32 ``[b, pages]``."""
        return self.ints[:, ROW_FIELDS:]

    @property
    def position(self) -> jax.Array:
        """Index in the sequence of the token that is sampled, int32."""
        return self.start + self.length

    @property
    def held_back(self) -> jax.Array:
        """Whether a token that ends the answer may not be sampled yet, bool."""
        return self.want(MIN_TOKENS) & (self.position - self.prompt < self.min_tokens)

    def want(self, bit: int) -> jax.Array:
        """Whether each row wants something, bool."""
        return self.wants & bit != 0

    @property
    def plain(self) -> jax.Array:
        """Whether no row wants anything beyond temperature, top-k and top-p now, a bool."""
        return ~jnp.any((self.wants & ~MIN_TOKENS != 0) | self.held_back)
