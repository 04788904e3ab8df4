"""JAX's ragged paged attention for TPUs: a Pallas kernel that reads pages of just our pools' layout."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from epdjax.models.attention import AttentionKind
from epdjax.serving.paged import PagedRows

# Pages and queries it works on at once where JAX's table of tuned sizes cannot be asked, because it is one of the
# process's own TPUs, and there are none when compiling for one that is not there.
UNTUNED = {"num_kv_pages_per_block": 16, "num_queries_per_block": 16}


def reads(rows: PagedRows, kind: AttentionKind) -> tuple[jax.Array, ...]:
    """What `attend` needs of the rows."""
    return rows.tables_bp, rows.starts_b


def attend(
    q_btnh: jax.Array,
    pool: jax.Array,
    tables_bp: jax.Array,
    starts_b: jax.Array,
    *,
    kind: AttentionKind,
    tuned: bool = True,
) -> jax.Array:
    """`reads` in, ``o_btnh`` out; `epdjax.serving.paged.PagesAttend` says the rest. Every token sees just those before.

    A row's padding counts as queries behind its last token: what is valid does not see them, and they see finite keys.
    """
    b, t, n, h = q_btnh.shape
    pages = tables_bp.shape[1]
    sizes = {} if tuned else UNTUNED | {"num_kv_pages_per_block": min(pages, UNTUNED["num_kv_pages_per_block"])}
    o_qnh = ragged_paged_attention(
        q_btnh.reshape(b * t, n, h),
        pool,
        starts_b + t,
        tables_bp,
        jnp.arange(b + 1, dtype=jnp.int32) * t,
        jnp.array([b], jnp.int32),
        sm_scale=h**-0.5 if kind.scale is None else kind.scale,
        sliding_window=kind.window,
        soft_cap=kind.softcap,
        **sizes,
    )
    return o_qnh.reshape(b, t, n, h)
