"""What requests may ask to be done to logits before a token is chosen. Each row for itself.

Order and meaning are vLLM's (`vllm/v1/sample/sampler.py`): bias, then repetition, frequency and presence penalty. A
setting of the neutral value changes no bit of a row.
"""

import jax
import jax.numpy as jnp

from epdjax.serving.rows import BIAS, PENALTIES, Rows
from epdjax.serving.slots import MASKED, MAX_HELD_BACK, NOBODY, Slots


def adjust(logits_bv: jax.Array, rows: Rows, slots: Slots, longest: int) -> jax.Array:
    """Logits with bias and penalties, and without the tokens that may not end the answer yet.

    Args:
        logits_bv: float32.
        longest: no row's sequence is longer, sampled token excluded.
    """
    biased_bv = _bias(logits_bv, rows, slots)
    return jax.lax.cond(
        jnp.any(rows.want(PENALTIES)), lambda: _penalise(biased_bv, rows, slots, longest), lambda: biased_bv
    )


def drop_unlikely(scaled_bv: jax.Array, min_p_b: jax.Array) -> jax.Array:
    """Mask tokens less than `min_p` times as likely as the likeliest; `min_p` of 0 masks none.

    Args:
        scaled_bv: logits by temperature.
    """
    least_b = jnp.max(scaled_bv, axis=-1) + jnp.log(min_p_b)
    return jnp.where(scaled_bv >= least_b[:, None], scaled_bv, MASKED)


def _bias(logits_bv: jax.Array, rows: Rows, slots: Slots) -> jax.Array:
    ids_bk = slots.bias_ids[rows.slot]
    is_bias_k = jnp.arange(ids_bk.shape[1]) >= MAX_HELD_BACK
    wanted_bk = jnp.where(is_bias_k, rows.want(BIAS)[:, None], rows.held_back[:, None])
    at = logits_bv.at[jnp.arange(len(logits_bv))[:, None], jnp.where(wanted_bk, ids_bk, NOBODY)]
    return at.add(slots.bias_values[rows.slot], mode="drop")


def _penalise(logits_bv: jax.Array, rows: Rows, slots: Slots, longest: int) -> jax.Array:
    history_bl = slots.history[rows.slot, :longest]
    at_l = jnp.arange(history_bl.shape[1])
    known_bl = rows.want(PENALTIES)[:, None] & (at_l < rows.position[:, None])
    answer_bl = (at_l >= rows.prompt[:, None]).astype(jnp.int32)
    b, vocab = logits_bv.shape
    row_b1 = jnp.arange(b)[:, None]
    counts_bpv = jnp.zeros((b, 2, vocab), jnp.int32)
    counts_bpv = counts_bpv.at[row_b1, answer_bl, jnp.where(known_bl, history_bl, NOBODY)].add(1, mode="drop")
    answer_bv = counts_bpv[:, 1]
    seen_bv = (counts_bpv[:, 0] > 0) | (answer_bv > 0)
    repetition_bv = jnp.where(seen_bv, rows.repetition_penalty[:, None], 1.0)
    logits_bv = jnp.where(logits_bv > 0, logits_bv / repetition_bv, logits_bv * repetition_bv)
    logits_bv -= rows.frequency_penalty[:, None] * answer_bv
    return logits_bv - rows.presence_penalty[:, None] * (answer_bv > 0)
