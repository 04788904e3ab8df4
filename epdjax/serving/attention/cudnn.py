"""cuDNN's flash attention, through ``jax.nn.dot_product_attention``: for encoders, and for prefill over gathered pages.

It holds no scores in memory. What encoders may see is given by lengths, what prefill may see by a mask without a head
axis. cuDNN has paged attention too, but wants a pool that holds the keys of just the rows at hand and their values in
another; ours is shared by all sequences.
"""

import jax
import jax.numpy as jnp

from epdjax.models.attention import AttentionKind
from epdjax.serving.paged import PagedRows, gather_pages


def attend_to_unit(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
) -> jax.Array:
    """See `epdjax.models.attention.UnitAttend`. A unit that is all padding gives finite values of no meaning."""
    if valid is None:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if scattered:
        # The order of keys is nothing to attention: those that count come first, and a length says how many they are.
        order_bs = jnp.argsort(~valid, axis=1, stable=True)[..., None, None]
        k, v = jnp.take_along_axis(k, order_bs, axis=1), jnp.take_along_axis(v, order_bs, axis=1)
    lengths_b = jnp.maximum(valid.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths_b, implementation="cudnn")


def reads(rows: PagedRows, kind: AttentionKind) -> tuple[jax.Array, ...]:
    """What `attend` needs of the rows. Keys behind a row's last token are not even looked at."""
    ends_b = jnp.maximum(rows.starts_b + rows.lengths_b, 1)
    return rows.tables_bp, rows.mask_bts(kind.window), ends_b


def attend(
    q_btnh: jax.Array,
    pool: jax.Array,
    tables_bp: jax.Array,
    mask_bts: jax.Array,
    ends_b: jax.Array,
    *,
    kind: AttentionKind,
) -> jax.Array:
    """`reads` in, ``o_btnh`` out; `epdjax.serving.paged.PagesAttend` says the rest. Cannot cap scores."""
    k_bskh, v_bskh = gather_pages(pool, tables_bp)
    return jax.nn.dot_product_attention(
        q_btnh,
        k_bskh,
        v_bskh,
        mask=mask_bts[:, None],
        key_value_seq_lengths=ends_b,
        scale=kind.scale,
        implementation="cudnn",
    )
