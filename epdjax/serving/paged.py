"""Keys and values in pages: the pools' layout, and attention over them.

A layer's KV pool is one buffer ``[blocks, block_size, 2 * kv_heads, head_dim]`` in which key and value of a head lie
next to each other (k0, v0, k1, v1, ...), so that a tensor-parallel split keeps them together. Block 0 belongs to
nobody: padding is written there.

`gather_pages` and `attend_to_gathered` are the XLA reference: they gather the pages a row may see and attend densely.
Faster kernels (`epdjax.serving.attention`) have to agree with it.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from epdjax.models.attention import FULL, AttentionKind, dense_attention
from epdjax.models.text_config import TextConfig

POOL_AXES = (None, None, "kv_heads", None)


def pool_shape(blocks: int, block_size: int, config: TextConfig) -> tuple[int, int, int, int]:
    """Shape of a layer's KV pool with `blocks` usable blocks and the padding block."""
    return (blocks + 1, block_size, 2 * config.num_kv_heads, config.head_dim)


class PagedRows:
    """The rows of a step: where they are in their sequences, and what their new tokens see.

    Attributes:
        tables_bp: int32, the blocks of each row's sequence in order, 0 beyond its end.
        starts_b: int32, position of each row's first new token.
        lengths_b: int32, new tokens of each row; the rest of the row is padding.
        positions_bt: int32, of every new token, padding included.
        valid_bt: bool, which of them are no padding.
        last_bt: int32, the last position that each sees: its own, or that of a later token of its picture.
    """

    def __init__(
        self,
        tables_bp: jax.Array,
        starts_b: jax.Array,
        lengths_b: jax.Array,
        tokens: int,
        block_size: int,
        sees_bt: jax.Array | None = None,
    ):
        """
        Args:
            tokens: new tokens per row, padding included.
            block_size: tokens of a page.
            sees_bt: `last_bt`; None: every token's own position.
        """
        self.tables_bp, self.starts_b, self.lengths_b = tables_bp, starts_b, lengths_b
        self.positions_bt = starts_b[:, None] + jnp.arange(tokens, dtype=jnp.int32)
        self.valid_bt = jnp.arange(tokens) < lengths_b[:, None]
        self.last_bt = self.positions_bt if sees_bt is None else sees_bt
        self._keys = tables_bp.shape[1] * block_size
        self._masks: dict[int | None, jax.Array] = {}

    def first_bt(self, window: int | None) -> jax.Array:
        """int32, the first position that each new token sees."""
        return jnp.maximum(self.positions_bt - (window - 1), 0) if window else jnp.zeros_like(self.positions_bt)

    def mask_bts(self, window: int | None) -> jax.Array:
        """Which keys of its row's pages each new token sees, bool; made once for all layers with that window."""
        if window not in self._masks:
            keys = jnp.arange(self._keys)
            mask = keys <= self.last_bt[..., None]
            if window is not None:
                mask &= keys > self.positions_bt[..., None] - window
            self._masks[window] = mask
        return self._masks[window]


class PagesAttend(Protocol):
    """How new tokens attend to their rows' pages, their own keys and values included: the reference, or a kernel.

    Takes ``q_btnh`` and a layer's pool; returns ``o_btnh``. What it returns for padding is finite and of no meaning.
    """

    def __call__(self, q_btnh: jax.Array, pool: jax.Array, rows: PagedRows, kind: AttentionKind) -> jax.Array: ...


def gather_pages(pool: jax.Array, tables_bp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values ``[b, pages * block_size, kv_heads, head_dim]`` of each row's pages, copied out of the pool."""
    b, (_, _, heads2, dim) = tables_bp.shape[0], pool.shape
    seen_bskch = pool[tables_bp].reshape(b, -1, heads2 // 2, 2, dim)
    return seen_bskch[:, :, :, 0], seen_bskch[:, :, :, 1]


def attend_to_gathered(q_btnh: jax.Array, pool: jax.Array, rows: PagedRows, kind: AttentionKind) -> jax.Array:
    """The reference `PagesAttend`."""
    k_bskh, v_bskh = gather_pages(pool, rows.tables_bp)
    return dense_attention(q_btnh, k_bskh, v_bskh, rows.mask_bts(kind.window), kind.scale, kind.softcap)


class PagedAttend:
    """The decoder's `Attend` over paged pools: write the new keys and values, then attend to all a row may see.

    After a forward pass `pools` holds the updated pools.
    """

    def __init__(self, pools: Sequence[jax.Array], rows: PagedRows, attend_pages: PagesAttend = attend_to_gathered):
        """
        Args:
            pools: one per layer, donated by the caller's jit so that they are updated in place.
        """
        self.pools = list(pools)
        self._rows, self._attend_pages = rows, attend_pages
        block_size, pages = self.pools[0].shape[1], rows.tables_bp.shape[1]
        page_bt = jnp.minimum(rows.positions_bt // block_size, pages - 1)
        block_bt = jnp.take_along_axis(rows.tables_bp, page_bt, axis=1)
        self._block_bt = jnp.where(rows.valid_bt, block_bt, 0)
        self._offset_bt = jnp.where(rows.valid_bt, rows.positions_bt % block_size, 0)

    def __call__(self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array, kind: AttentionKind = FULL) -> jax.Array:
        b, t, heads, dim = k.shape
        kv_btch = jnp.stack([k, v], axis=3).reshape(b, t, 2 * heads, dim)
        # A weight of zero times NaN is NaN: blocks must stay harmless to whoever gets them next, masked or not.
        kv_btch = jnp.where(jnp.isfinite(kv_btch), kv_btch, 0)
        pool = self.pools[layer]
        pool = _write(pool, self._block_bt, self._offset_bt, kv_btch)
        self.pools[layer] = pool
        return self._attend_pages(q, pool, self._rows, kind)


def _write(pool: jax.Array, block_bt: jax.Array, offset_bt: jax.Array, kv_btch: jax.Array) -> jax.Array:
    """The pool with the keys and values of new tokens in place.

    A single token is written together with a row of padding. XLA makes a slice update of a scatter of one row, and
    XLA:CPU then copies the whole pool around it: 403 ms for a decode step of one sequence instead of 51 (16 layers with
    pools of 33 MB).
    """
    if block_bt.size == 1:
        block_bt, offset_bt = (jnp.pad(some, ((0, 0), (0, 1))) for some in (block_bt, offset_bt))
        kv_btch = jnp.pad(kv_btch, ((0, 0), (0, 1), (0, 0), (0, 0)))
    return pool.at[block_bt, offset_bt].set(kv_btch.astype(pool.dtype))
