"""Sampling on the device. A row's token depends on its own logits, settings, seed and position, never on the batch."""

import jax
import jax.numpy as jnp

MASKED = -1e30


def sample(
    logits_bv: jax.Array,
    temperature_b: jax.Array,
    top_k_b: jax.Array,
    top_p_b: jax.Array,
    seed_b: jax.Array,
    position_b: jax.Array,
) -> jax.Array:
    """One token per row.

    Args:
        logits_bv: float32.
        temperature_b: float32; 0 takes the likeliest token.
        top_k_b: int32; 0 or less: no limit.
        top_p_b: float32 in (0, 1].
        seed_b: int32.
        position_b: int32, the index in the sequence of the token that is sampled.

    Returns:
        int32 ``[b]``.
    """
    greedy_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        scaled_bv = logits_bv / jnp.where(temperature_b > 0, temperature_b, 1.0)[:, None]
        limited_b = (top_k_b > 0) | (top_p_b < 1)
        kept_bv = jax.lax.cond(
            jnp.any(limited_b & (temperature_b > 0)), lambda: _limit(scaled_bv, top_k_b, top_p_b), lambda: scaled_bv
        )
        # Gumbel-max draws from the softmax with noise that is a function of (seed, position) alone.
        noise_bv = jax.vmap(_noise, in_axes=(0, 0, None))(seed_b, position_b, logits_bv.shape[-1])
        return jnp.where(temperature_b > 0, jnp.argmax(kept_bv + noise_bv, axis=-1).astype(jnp.int32), greedy_b)

    return jax.lax.cond(jnp.any(temperature_b > 0), drawn, lambda: greedy_b)


def _noise(seed: jax.Array, position: jax.Array, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.gumbel(key, (size,), jnp.float32)


def _limit(logits_bv: jax.Array, top_k_b: jax.Array, top_p_b: jax.Array) -> jax.Array:
    """Mask what top-k leaves out, then what top-p leaves out of the rest."""
    vocab = logits_bv.shape[-1]
    sorted_bv = jnp.sort(logits_bv, axis=-1, descending=True)
    rank_v = jnp.arange(vocab)
    k_b = jnp.where(top_k_b > 0, jnp.minimum(top_k_b, vocab), vocab)
    sorted_bv = jnp.where(rank_v < k_b[:, None], sorted_bv, MASKED)
    probability_bv = jax.nn.softmax(sorted_bv, axis=-1)
    before_bv = jnp.cumsum(probability_bv, axis=-1) - probability_bv
    keep_bv = (before_bv < top_p_b[:, None]) & (rank_v < k_b[:, None])
    threshold_b = jnp.min(jnp.where(keep_bv, sorted_bv, jnp.inf), axis=-1)
    return jnp.where(logits_bv >= threshold_b[:, None], logits_bv, MASKED)
