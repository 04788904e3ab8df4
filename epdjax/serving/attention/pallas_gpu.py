"""Attention over a paged KV pool on GPUs: a Pallas kernel that reads pages through the block table.

Nothing is gathered and no matrix of scores exists: a program holds some queries of one KV head and walks over the keys
they see, a tile at a time, with a running maximum and sum (flash attention; Dao et al., 2022). Where there are few
queries, as in decode, several programs share the keys of a row and their results are put together afterwards
(flash decoding). It is compiled by Pallas' Triton backend, and run by Pallas' interpreter on CPU in the tests.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from epdjax.models.attention import MASKED, AttentionKind
from epdjax.serving.paged import PagedRows

LEAST_ROWS, MOST_ROWS = 16, 128  # of a tile of queries: what a tensor core takes at least, and what registers hold
PROGRAMS = 264  # worth starting at once: two for each multiprocessor of an H100
LEAST_KEYS = 256  # that a program should have to itself before keys are split over several


def reads(rows: PagedRows, kind: AttentionKind) -> tuple[jax.Array, ...]:
    """What `attend` needs of the rows: padding sees nothing."""
    return rows.tables_bp, rows.first_bt(kind.window), jnp.where(rows.valid_bt, rows.last_bt, -1)


def attend(
    q_btnh: jax.Array,
    pool: jax.Array,
    tables_bp: jax.Array,
    first_bt: jax.Array,
    last_bt: jax.Array,
    *,
    kind: AttentionKind,
    interpret: bool = False,
) -> jax.Array:
    """`reads` in, ``o_btnh`` out; `epdjax.serving.paged.PagesAttend` says the rest."""
    scale = q_btnh.shape[-1] ** -0.5 if kind.scale is None else kind.scale
    arrays = (q_btnh, pool, tables_bp, first_bt, last_bt)
    return paged_attention(*arrays, scale=scale, softcap=kind.softcap, interpret=interpret)


def _kernel(
    q_ref: Any,
    first_ref: Any,
    last_ref: Any,
    table_ref: Any,
    pool_ref: Any,
    o_ref: Any,
    *stats_refs: Any,
    keys: int,
    splits: int,
    scale: float,
    softcap: float | None,
) -> None:
    """One tile of queries ``[rows, h]`` of a KV head, over its share of the keys.

    Args:
        first_ref, last_ref: int32 ``[rows]``, the positions each query sees; none where last is before first.
        table_ref: int32 ``[pages]``. pool_ref: all of ``[blocks, block_size, 2 * kv_heads, h]``.
        o_ref: ``[rows, h]``. stats_refs: with several splits, float32 ``[rows]`` each: maximum and sum.
    """
    head, split = pl.program_id(1), pl.program_id(3)
    rows, wide = q_ref.shape
    pages, block_size = table_ref.shape[0], pool_ref.shape[1]
    q, first, last = q_ref[...], first_ref[...], last_ref[...]
    seeing = last >= first
    low = jnp.min(jnp.where(seeing, first, pages * block_size)) // keys
    high = pl.cdiv(jnp.max(jnp.where(seeing, last, -1)) + 1, keys)
    share = pl.cdiv(jnp.maximum(high - low, 0), splits)
    low, high = low + split * share, jnp.minimum(low + (split + 1) * share, high)

    def step(tile: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        o, top, total = carry
        position = tile * keys + jnp.arange(keys)
        page = table_ref[jnp.minimum(position // block_size, pages - 1)]
        offset = position % block_size
        k = pool_ref[page, offset, 2 * head]
        scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        seen = (position[None] >= first[:, None]) & (position[None] <= last[:, None])
        scores = jnp.where(seen, scores, MASKED)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
        shrink = jnp.exp(top - higher)
        v = pool_ref[page, offset, 2 * head + 1]
        o = o * shrink[:, None] + jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return o, higher, total * shrink + jnp.sum(weights, axis=1)

    start = (
        jnp.zeros((rows, wide), jnp.float32),
        jnp.full((rows,), MASKED, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
    )
    o, top, total = jax.lax.fori_loop(low, high, step, start)
    if splits == 1:
        o_ref[...] = (o / jnp.where(total == 0.0, 1.0, total)[:, None]).astype(o_ref.dtype)
    else:
        top_ref, total_ref = stats_refs
        o_ref[...], top_ref[...], total_ref[...] = o, top, total


def paged_attention(
    q_btnh: jax.Array,
    pool: jax.Array,
    tables_bp: jax.Array,
    first_bt: jax.Array,
    last_bt: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    splits: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention of new tokens over the pages of their rows.

    Args:
        q_btnh: queries; bfloat16 or float16 on a GPU, whose head dim has to be a power of two of at least 16.
        pool: ``[blocks, block_size, 2 * kv_heads, h]``, see `epdjax.serving.paged`; the new tokens' own keys included.
        tables_bp: int32, the blocks of each row.
        first_bt, last_bt: int32, the positions that each token sees, both included; none where last is before first.
        scale, softcap: see `epdjax.models.attention.AttentionKind`.
        splits: programs that share the keys of a tile of queries; None: as many as are worth it.
        interpret: run by Pallas' interpreter, on any platform.

    Returns:
        ``o_btnh`` in the dtype of `q_btnh`; zeros for tokens that see nothing.
    """
    b, t, n, h = q_btnh.shape
    block_size, kv_heads = pool.shape[1], pool.shape[2] // 2
    group = n // kv_heads
    rows = min(MOST_ROWS, max(LEAST_ROWS, pl.next_power_of_2(t * group)))
    tiles = pl.cdiv(t * group, rows)
    padding = tiles * rows - t * group
    # A row of a tile is a query head of a token: those that share a KV head lie next to one another.
    q_bkth = q_btnh.reshape(b, t, kv_heads, group, h).swapaxes(1, 2).reshape(b, kv_heads, t * group, h)
    q_bkrh = jnp.pad(q_bkth, ((0, 0), (0, 0), (0, padding), (0, 0)))
    first_br = jnp.pad(jnp.repeat(first_bt, group, axis=1), ((0, 0), (0, padding)))
    last_br = jnp.pad(jnp.repeat(last_bt, group, axis=1), ((0, 0), (0, padding)), constant_values=-1)
    if splits is None:
        useful = pl.cdiv(tables_bp.shape[1] * block_size, LEAST_KEYS)
        splits = max(1, min(useful, PROGRAMS // (b * kv_heads * tiles)))
    keys = 64 if h <= 128 else 32  # of a tile; shared memory holds keys and values of a few

    def row_spec(*dims: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, *dims), lambda b, k, r, s: (b, r, *(0 for _ in dims)))

    def out_spec(*dims: int) -> pl.BlockSpec:
        where = (None, None, None, rows, *dims)
        return pl.BlockSpec(where, lambda b, k, r, s: (s, b, k, r, *(0 for _ in dims)))

    padded = (splits, b, kv_heads, tiles * rows)
    out_specs, out_shape = [out_spec(h)], [jax.ShapeDtypeStruct((*padded, h), q_btnh.dtype)]
    if splits > 1:
        out_specs += [out_spec(), out_spec()]
        out_shape = [jax.ShapeDtypeStruct((*padded, h), jnp.float32)] + 2 * [jax.ShapeDtypeStruct(padded, jnp.float32)]
    outputs = pl.pallas_call(
        functools.partial(_kernel, keys=keys, splits=splits, scale=scale, softcap=softcap),
        grid=(b, kv_heads, tiles, splits),
        in_specs=[
            pl.BlockSpec((None, None, rows, h), lambda b, k, r, s: (b, k, r, 0)),
            row_spec(),
            row_spec(),
            pl.BlockSpec((None, tables_bp.shape[1]), lambda b, k, r, s: (b, 0)),
            pl.BlockSpec(pool.shape, lambda b, k, r, s: (0, 0, 0, 0)),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=None if interpret else _compiler_params(rows * h),
        interpret=interpret,
        name="paged_attention",
    )(q_bkrh, first_br, last_br, tables_bp, pool)
    o_bkrh = outputs[0][0] if splits == 1 else _joined(*outputs).astype(q_btnh.dtype)
    o_bktgh = o_bkrh[:, :, : t * group].reshape(b, kv_heads, t, group, h)
    return o_bktgh.swapaxes(1, 2).reshape(b, t, n, h)


def _joined(o_sbkrh: jax.Array, top_sbkr: jax.Array, total_sbkr: jax.Array) -> jax.Array:
    """What the splits found, put together: each weighs as much as its share of the softmax's denominator."""
    shrink_sbkr = jnp.exp(top_sbkr - top_sbkr.max(axis=0))
    total_bkr = (total_sbkr * shrink_sbkr).sum(axis=0)
    o_bkrh = (o_sbkrh * shrink_sbkr[..., None]).sum(axis=0)
    return o_bkrh / jnp.where(total_bkr == 0.0, 1.0, total_bkr)[..., None]


def _compiler_params(tile: int) -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=8 if tile > 64 * 128 else 4, num_stages=2)
