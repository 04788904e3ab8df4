"""Rows of logits sampled as a step would do it, host packing included, without a model."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.serving.adjust import adjust
from epdjax.serving.params import SamplingParams
from epdjax.serving.rows import Rows, fill_row, pack_rows, settings_of
from epdjax.serving.sampling import Sampled, sample
from epdjax.serving.slots import Slots, seed_slot, slot_row

LENGTH = 48
STALE = 7  # what the last owner of a slot has left there


@dataclasses.dataclass(frozen=True)
class Case:
    """A sequence about to get its next token."""

    params: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    prompt: Sequence[int] = (0,)
    answer: Sequence[int] = ()
    stops: frozenset[int] = frozenset()
    seed: int = 0
    seeded: bool = True


_seed = jax.jit(seed_slot)
_sample = jax.jit(sample, static_argnums=3)
_adjust = jax.jit(adjust, static_argnums=3)


def packed(cases: Sequence[Case]) -> tuple[Rows, Slots]:
    """Rows and slots of sequences; case i has slot i + 1."""
    shapes = Slots.shapes(len(cases), LENGTH).items()
    slots = Slots(**{name: jnp.full(dims, STALE, dtype) for name, (dims, dtype) in shapes})
    ints, floats = pack_rows(len(cases), 1)
    for row, case in enumerate(cases):
        known = np.array([*case.prompt, *case.answer], np.int32)
        if case.seeded:
            values = slot_row(known, case.params.logit_bias, case.stops, LENGTH)
            slots = _seed(slots, np.array([row + 1], np.int32), values)
        settings = settings_of(case.params, case.seed, 0, len(case.prompt))
        fill_row(ints[row], floats[row], settings, len(known) - 1, 1, row + 1, (1,))
    return Rows(jnp.asarray(ints), jnp.asarray(floats)), slots


def sampled(logits: np.ndarray, cases: Sequence[Case]) -> Sampled:
    """What is sampled from ``[b, vocab]``, on the host."""
    return jax.device_get(_sample(jnp.asarray(logits, jnp.float32), *packed(cases), LENGTH))


def adjusted(logits: np.ndarray, cases: Sequence[Case]) -> np.ndarray:
    """Logits ``[b, vocab]`` with all that the sequences ask for."""
    return np.asarray(_adjust(jnp.asarray(logits, jnp.float32), *packed(cases), LENGTH))
