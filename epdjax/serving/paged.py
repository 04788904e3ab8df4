"""Keys and values in pages: the pools' layout, and attention over them.

A layer's KV pool is one buffer ``[blocks, block_size, 2 * kv_heads, head_dim]`` in which key and value of a head lie
next to each other (k0, v0, k1, v1, ...), so that a tensor-parallel split keeps them together. Block 0 belongs to
nobody: padding is written there.

This is the XLA reference: it gathers the pages a row may see and attends densely. Faster kernels have to agree with it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from epdjax.models.attention import FULL, AttentionKind, dense_attention
from epdjax.models.text_config import TextConfig

POOL_AXES = (None, None, "kv_heads", None)


def pool_shape(blocks: int, block_size: int, config: TextConfig) -> tuple[int, int, int, int]:
    """Shape of a layer's KV pool with `blocks` usable blocks and the padding block."""
    return (blocks + 1, block_size, 2 * config.num_kv_heads, config.head_dim)


class PagedAttend:
    """The decoder's `Attend` over paged pools: write the new keys and values, then attend to all a row may see.

    After a forward pass `pools` holds the updated pools.
    """

    def __init__(
        self,
        pools: Sequence[jax.Array],
        tables_bp: jax.Array,
        starts_b: jax.Array,
        lengths_b: jax.Array,
        tokens: int,
        sees_bt: jax.Array | None = None,
    ):
        """
        Args:
            pools: one per layer, donated by the caller's jit so that they are updated in place.
            tables_bp: int32, the blocks of each row's sequence in order, 0 beyond its end.
            starts_b: int32, position of each row's first new token.
            lengths_b: int32, new tokens of each row; the rest of the row is padding.
            tokens: new tokens per row, padding included.
            sees_bt: int32, last position that each new token sees; None: its own.
        """
        self.pools = list(pools)
        block_size = self.pools[0].shape[1]
        pages = tables_bp.shape[1]
        self.positions_bt = starts_b[:, None] + jnp.arange(tokens, dtype=jnp.int32)
        valid_bt = jnp.arange(tokens) < lengths_b[:, None]
        block_bt = jnp.take_along_axis(tables_bp, jnp.minimum(self.positions_bt // block_size, pages - 1), axis=1)
        self._block_bt = jnp.where(valid_bt, block_bt, 0)
        self._offset_bt = jnp.where(valid_bt, self.positions_bt % block_size, 0)
        self._tables_bp = tables_bp
        self._sees_bt = self.positions_bt if sees_bt is None else sees_bt
        self._masks: dict[int | None, jax.Array] = {}

    def _mask_bts(self, window: int | None) -> jax.Array:
        """Which keys each new token sees; made once for all layers with that window."""
        if window not in self._masks:
            keys = jnp.arange(self._tables_bp.shape[1] * self.pools[0].shape[1])
            mask = keys <= self._sees_bt[..., None]
            if window is not None:
                mask &= keys > self.positions_bt[..., None] - window
            self._masks[window] = mask
        return self._masks[window]

    def __call__(self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array, kind: AttentionKind = FULL) -> jax.Array:
        b, t, heads, dim = k.shape
        kv_btch = jnp.stack([k, v], axis=3).reshape(b, t, 2 * heads, dim)
        pool = self.pools[layer]
        pool = _write(pool, self._block_bt, self._offset_bt, kv_btch)
        self.pools[layer] = pool
        pages_bpoch = pool[self._tables_bp]
        seen_bskch = pages_bpoch.reshape(b, -1, heads, 2, dim)
        mask_bts = self._mask_bts(kind.window)
        return dense_attention(q, seen_bskch[:, :, :, 0], seen_bskch[:, :, :, 1], mask_bts, kind.scale, kind.softcap)


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
