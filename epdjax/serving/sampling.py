"""Sampling on the device. A row's token depends on its own logits, settings, seed, position and history, never on the
batch."""

import dataclasses

import jax
import jax.numpy as jnp

from epdjax.serving.adjust import adjust, drop_unlikely
from epdjax.serving.rows import LOGPROBS, Rows
from epdjax.serving.slots import MASKED, Slots

NO_TOKEN = -1  # sampled where a model's numbers are not finite
TOP_LOGPROBS = 20  # as many as a request may ask for (OpenAI, vLLM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of the model's own distribution: at temperature 1, before bias, penalties and limits.

    Attributes:
        chosen: float32 ``[b]``, of the sampled token.
        ids, top: int32 and float32 ``[b, k]``, the likeliest tokens in order; k is 20, or the vocabulary if smaller.
    """

    chosen: jax.Array
    ids: jax.Array
    top: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a step sampled: a token per row, int32 ``[b]``, and log-probabilities (zeros if no row wants any; None if
    nobody needs to know that)."""

    tokens: jax.Array
    logprobs: Logprobs | None


def sample(logits_bv: jax.Array, rows: Rows, slots: Slots, longest: int) -> Sampled:
    """One token per row.

    Only one of three branches is run: what no row wants costs nothing, not even another branch to decide it.

    Args:
        logits_bv: float32.
        longest: no row's sequence is longer, sampled token excluded.
    """
    greedy = ~jnp.any(rows.temperature > 0)
    branch = jnp.where(rows.plain, jnp.where(greedy, 0, 1), 2)
    branches = (
        lambda: Sampled(_greedy(logits_bv), _none(*logits_bv.shape)),
        lambda: Sampled(_draw(_scaled(logits_bv, rows), rows), _none(*logits_bv.shape)),
        lambda: _sample_with_extras(logits_bv, rows, slots, longest),
    )
    return jax.lax.switch(branch, branches)


def _sample_with_extras(logits_bv: jax.Array, rows: Rows, slots: Slots, longest: int) -> Sampled:
    adjusted_bv = adjust(logits_bv, rows, slots, longest)

    def drawn() -> jax.Array:
        return _draw(drop_unlikely(_scaled(adjusted_bv, rows), rows.min_p), rows)

    tokens_b = jax.lax.cond(jnp.any(rows.temperature > 0), drawn, lambda: _greedy(adjusted_bv))
    logprobs = jax.lax.cond(
        jnp.any(rows.want(LOGPROBS)), lambda: _logprobs(logits_bv, tokens_b), lambda: _none(*logits_bv.shape)
    )
    return Sampled(tokens_b, logprobs)


def _greedy(logits_bv: jax.Array) -> jax.Array:
    return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)


def _scaled(logits_bv: jax.Array, rows: Rows) -> jax.Array:
    return logits_bv / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]


def _draw(scaled_bv: jax.Array, rows: Rows) -> jax.Array:
    """Rows of temperature 0 take the likeliest token all the same."""
    hot_b = rows.temperature > 0
    limited_b = (rows.top_k > 0) | (rows.top_p < 1)
    kept_bv = jax.lax.cond(
        jnp.any(limited_b & hot_b), lambda: _limit(scaled_bv, rows.top_k, rows.top_p), lambda: scaled_bv
    )
    # Gumbel-max draws from the softmax with noise that is a function of (seed, position) alone.
    noise_bv = jax.vmap(_noise, in_axes=(0, 0, None))(rows.seed, rows.position, scaled_bv.shape[-1])
    return jnp.where(hot_b, _greedy(kept_bv + noise_bv), _greedy(scaled_bv))


def _noise(seed: jax.Array, position: jax.Array, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.gumbel(key, (size,), jnp.float32)


def _limit(logits_bv: jax.Array, top_k_b: jax.Array, top_p_b: jax.Array) -> jax.Array:
    """Mask what top-k leaves out, then what top-p leaves out of the rest.

    Both keep the first tokens in order of their logits; of equal ones, which come in the order of their ids, only as
    many as belong to the first. So top-k keeps k, never more, and top-p the fewest that have that much probability.
    """
    vocab = logits_bv.shape[-1]
    sorted_bv = jnp.sort(logits_bv, axis=-1, descending=True)
    rank_v = jnp.arange(vocab)
    k_b = jnp.where(top_k_b > 0, jnp.minimum(top_k_b, vocab), vocab)
    sorted_bv = jnp.where(rank_v < k_b[:, None], sorted_bv, MASKED)
    probability_bv = jax.nn.softmax(sorted_bv, axis=-1)
    before_bv = jnp.cumsum(probability_bv, axis=-1) - probability_bv
    keep_bv = (before_bv < top_p_b[:, None]) & (rank_v < k_b[:, None])
    least_b1 = jnp.min(jnp.where(keep_bv, sorted_bv, jnp.inf), axis=-1, keepdims=True)
    at_least_bv = logits_bv >= least_b1
    kept_b1 = jnp.max(jnp.where(keep_bv, rank_v + 1, 0), axis=-1, keepdims=True)
    tied_out = jnp.sum(at_least_bv, axis=-1, keepdims=True) > kept_b1

    def without_ties() -> jax.Array:
        is_least_bv = logits_bv == least_b1
        room_b1 = kept_b1 - jnp.sum(logits_bv > least_b1, axis=-1, keepdims=True)
        return at_least_bv & ~(is_least_bv & (jnp.cumsum(is_least_bv, axis=-1) > room_b1))

    # Rarely any are equal just there, and to count through the vocabulary takes as long as all the rest but sorting.
    keep_bv = jax.lax.cond(jnp.any(tied_out), without_ties, lambda: at_least_bv)
    return jnp.where(keep_bv, logits_bv, MASKED)


def _logprobs(logits_bv: jax.Array, tokens_b: jax.Array) -> Logprobs:
    total_b1 = jax.nn.logsumexp(logits_bv, axis=-1, keepdims=True)
    top_bk, ids_bk = jax.lax.top_k(logits_bv, min(TOP_LOGPROBS, logits_bv.shape[1]))
    chosen_b1 = jnp.take_along_axis(logits_bv, tokens_b[:, None], axis=1)
    return Logprobs((chosen_b1 - total_b1)[:, 0], ids_bk.astype(jnp.int32), top_bk - total_b1)


def _none(rows: int, vocab: int) -> Logprobs:
    k = min(TOP_LOGPROBS, vocab)
    return Logprobs(jnp.zeros(rows, jnp.float32), jnp.zeros((rows, k), jnp.int32), jnp.zeros((rows, k), jnp.float32))
