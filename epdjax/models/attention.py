"""Attention over keys and values that lie side by side in memory: the reference every other kernel is checked against.

Attention over a paged KV pool is a matter of serving and lives there; it ends in the same arithmetic.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with every key masked gives a mean instead of NaN


def dense_attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask_bts: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention with grouped query heads; scores and softmax in float32.

    Args:
        q_btnh: queries, ``n`` heads.
        k_bskh: keys, ``k`` heads, ``n`` a multiple of ``k``; query head ``i`` reads key head ``i // (n // k)``.
        v_bskh: values.
        mask_bts: bool, True where a query may look; broadcastable to ``[b, t, s]``. None: everywhere.
        scale: of the scores; default ``1 / sqrt(h)``.

    Returns:
        ``o_btnh`` in the dtype of `q_btnh`.
    """
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    scale = h**-0.5 if scale is None else scale
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * scale
    if mask_bts is not None:
        scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, MASKED)
    weights = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    o_btkgh = jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh)
    return o_btkgh.reshape(b, t, n, h)


def causal_mask(t: int) -> jax.Array:
    """``[1, t, t]`` bool: position i sees positions 0..i."""
    return jnp.tril(jnp.ones((1, t, t), bool))
