"""Attention for CPUs: pages a row, a few queries and a few keys at a time; units a head at a time.

Whole batches make XLA:CPU write gathered pages and scores to memory and read them again; those of a tile stay in its
caches. And since tiles are visited in a loop whose length depends on the rows, rows that are padding, pages that a row
does not have, and keys that lie ahead of its queries cost nothing: a step takes what its contexts are long, not what
its bucket could hold.
"""

import functools

import jax
import jax.numpy as jnp

from epdjax.models.attention import MASKED, AttentionKind
from epdjax.serving.paged import PagedRows

MANY_SCORES = 2**19  # of a unit's head: from here on a loop over heads is worth it
QUERIES = 128  # of a tile of pages
KEYS = 128  # likewise


def attend_to_unit(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
) -> jax.Array:
    """See `epdjax.models.attention.UnitAttend`."""
    (b, t, n, h), s = q.shape, k.shape[1]
    seen_bs = jnp.ones((b, s), bool) if valid is None else valid
    q_xth, k_xsh, v_xsh = (some.swapaxes(1, 2).reshape(b * n, -1, some.shape[3]) for some in (q * h**-0.5, k, v))
    arrays = q_xth, k_xsh, v_xsh, jnp.repeat(seen_bs, n, axis=0)
    o_xth = _heads(*arrays) if t * s < MANY_SCORES else jax.lax.map(lambda x: _heads(*(y[None] for y in x))[0], arrays)
    return o_xth.reshape(b, n, t, -1).swapaxes(1, 2)


def _heads(q_xth: jax.Array, k_xsh: jax.Array, v_xsh: jax.Array, seen_xs: jax.Array) -> jax.Array:
    """Attention of some heads. Scores lie key by key, so that both products and the softmax run along memory, and what
    is divided in the end is the output: 93 ms instead of 144 for 12 times 8 units of 257 patches and 6 heads."""
    s_xst = jnp.einsum("xsh,xth->xst", k_xsh, q_xth, preferred_element_type=jnp.float32)
    s_xst = jnp.where(seen_xs[..., None], s_xst, MASKED)
    weights_xst = jnp.exp(s_xst - s_xst.max(axis=1, keepdims=True))
    o_xth = jnp.einsum("xst,xsh->xth", weights_xst.astype(v_xsh.dtype), v_xsh, preferred_element_type=jnp.float32)
    return (o_xth / weights_xst.sum(axis=1)[..., None]).astype(v_xsh.dtype)


def reads(rows: PagedRows, kind: AttentionKind) -> tuple[jax.Array, ...]:
    """What `attend` needs of the rows: their blocks, and the first and last key each query sees (padding: none)."""
    last_bt = jnp.where(rows.valid_bt, rows.last_bt, -1)
    first_bt = jnp.where(rows.valid_bt, rows.first_bt(kind.window), jnp.iinfo(jnp.int32).max)
    return rows.tables_bp, first_bt, last_bt


def attend(
    q_btnh: jax.Array,
    pool: jax.Array,
    tables_bp: jax.Array,
    first_bt: jax.Array,
    last_bt: jax.Array,
    *,
    kind: AttentionKind,
) -> jax.Array:
    """`reads` in, ``o_btnh`` out; `epdjax.serving.paged.PagesAttend` says the rest."""
    b, t, n, h = q_btnh.shape
    block_size = pool.shape[1]
    kv_heads, queries = pool.shape[2] // 2, min(t, QUERIES)
    pages = min(tables_bp.shape[1], max(1, KEYS // block_size))  # of a tile
    tables_bp = jnp.pad(tables_bp, ((0, 0), (0, -tables_bp.shape[1] % pages)))
    more = -t % queries
    # i: a tile of queries, m: a query of it and a query head of its KV head's group
    q_bitnh = jnp.pad(q_btnh, ((0, 0), (0, more), (0, 0), (0, 0))).reshape(b, -1, queries, n, h)
    first_bit = jnp.pad(first_bt, ((0, 0), (0, more)), constant_values=jnp.iinfo(jnp.int32).max)
    first_bit = first_bit.reshape(b, -1, queries)
    last_bit = jnp.pad(last_bt, ((0, 0), (0, more)), constant_values=-1).reshape(b, -1, queries)
    tiles = q_bitnh.shape[1]
    used = jnp.max(jnp.where(last_bit.max(axis=2) >= 0, jnp.arange(b * tiles).reshape(b, tiles) + 1, 0))

    def visit(at: jax.Array, o_bitnh: jax.Array) -> jax.Array:
        row, tile = at // tiles, at % tiles
        one = functools.partial(_tile, kv_heads=kv_heads, pages=pages, kind=kind)
        o_tnh = one(q_bitnh[row, tile], pool, tables_bp[row], first_bit[row, tile], last_bit[row, tile])
        return o_bitnh.at[row, tile].set(o_tnh.astype(o_bitnh.dtype))

    o_bitnh = jax.lax.fori_loop(0, used, visit, jnp.zeros_like(q_bitnh))
    return o_bitnh.reshape(b, -1, n, h)[:, :t]


def _tile(
    q_tnh: jax.Array,
    pool: jax.Array,
    table_p: jax.Array,
    first_t: jax.Array,
    last_t: jax.Array,
    *,
    kv_heads: int,
    pages: int,
    kind: AttentionKind,
) -> jax.Array:
    """Some queries of a row, over all the keys that any of them sees, with a running softmax."""
    t, n, h = q_tnh.shape
    group, keys = n // kv_heads, pages * pool.shape[1]
    scale = h**-0.5 if kind.scale is None else kind.scale
    q_kmh = (q_tnh * scale).reshape(t, kv_heads, group, h).transpose(1, 2, 0, 3).reshape(kv_heads, -1, h)

    def look(at: jax.Array, seen: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        o_kmh, most_km, sum_km = seen
        table = jax.lax.dynamic_slice_in_dim(table_p, at * pages, pages)
        # Heads first in one copy: half as much again faster than when each product brings its operand into order.
        kv_csh = pool[table].reshape(keys, 2 * kv_heads, h).swapaxes(0, 1)
        k_ksh, v_ksh = kv_csh[::2], kv_csh[1::2]
        s_kms = jnp.einsum("kmh,ksh->kms", q_kmh, k_ksh, preferred_element_type=jnp.float32)
        if kind.softcap is not None:
            s_kms = kind.softcap * jnp.tanh(s_kms / kind.softcap)
        position = at * keys + jnp.arange(keys)
        mask_ts = (position >= first_t[:, None]) & (position <= last_t[:, None])
        s_kms = jnp.where(jnp.tile(mask_ts, (group, 1)), s_kms, MASKED)
        new_km = jnp.maximum(most_km, s_kms.max(axis=-1))
        weights_kms = jnp.exp(s_kms - new_km[..., None])
        fade_km = jnp.exp(most_km - new_km)
        o_kmh = o_kmh * fade_km[..., None] + jnp.einsum("kms,ksh->kmh", weights_kms.astype(v_ksh.dtype), v_ksh)
        return o_kmh, new_km, sum_km * fade_km + weights_kms.sum(axis=-1)

    shape = q_kmh.shape[:2]
    nothing = jnp.zeros(q_kmh.shape, jnp.float32), jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    begin, end = first_t.min() // keys, last_t.max() // keys + 1
    o_kmh, _, sum_km = jax.lax.fori_loop(begin, end, look, nothing)
    o_kmh = o_kmh / jnp.maximum(sum_km, 1e-30)[..., None]
    return o_kmh.reshape(kv_heads, group, t, h).transpose(2, 0, 1, 3).reshape(t, n, h)
