"""The step functions: pure functions of flat arrays, one jitted program per bucket and instance.

A model is split once into leaves and a recipe (`Split`); programs take the flat leaves, because dispatching a module
costs milliseconds. Every step that changes a pool takes it donated and returns it, so the pool stays the same buffer.

Rows of a prefill or decode step come packed in one int32 array, to keep host-to-device transfers few: see `pack_rows`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.serving.paged import PagedAttend
from epdjax.serving.sampling import sample

ROW_FIELDS = 5  # start, length, slot, top_k, seed; then the block table

Pools = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """A module without its arrays.

    Attributes:
        graph: static structure.
        tree: how the flat leaves fit in.
    """

    graph: Any
    tree: Any

    @classmethod
    def of(cls, module: nnx.Module) -> tuple["Split", tuple[Any, ...]]:
        """The recipe of a module, and its leaves."""
        graph, state = nnx.split(module)
        leaves, tree = jax.tree.flatten(state)
        return cls(graph, tree), tuple(leaves)

    def join(self, leaves: tuple[Any, ...]) -> Any:
        """The module with these leaves; inside a trace this costs nothing at run time."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))


def pack_rows(rows: int, pages: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeroed host arrays for a step of `rows` rows: int32 ``[rows, ROW_FIELDS + pages]``, float32 ``[rows, 2]``.

    A row of zeros is padding: it is written to block 0 and slot 0, which belong to nobody. The floats are temperature
    and top-p.
    """
    floats = np.zeros((rows, 2), np.float32)
    floats[:, 1] = 1.0
    return np.zeros((rows, ROW_FIELDS + pages), np.int32), floats


def encode(split: Split, leaves: tuple[jax.Array, ...], pixels_uhwc: jax.Array) -> jax.Array:
    """uint8 encode units to MM tokens ``[units, tokens_per_unit, d]``."""
    return split.join(leaves)(pixels_uhwc)


def land_mm(mm_pool_rd: jax.Array, shards_und: tuple[jax.Array, ...], rows_un: jax.Array) -> jax.Array:
    """Write MM tokens that have arrived, a piece from each encoder, into a (donated) MM pool; row 0 takes padding."""
    mm_und = jnp.concatenate(shards_und)
    return mm_pool_rd.at[rows_un].set(mm_und.astype(mm_pool_rd.dtype))


def _run(
    split: Split,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    last_tokens: jax.Array,
    x_btd: jax.Array,
    ints: jax.Array,
    floats: jax.Array,
) -> tuple[jax.Array, Pools, jax.Array]:
    model = split.join(leaves)
    start_b, length_b, slot_b, top_k_b, seed_b = (ints[:, i] for i in range(ROW_FIELDS))
    attend = PagedAttend(pools, ints[:, ROW_FIELDS:], start_b, length_b, x_btd.shape[1])
    hidden_btd = model(x_btd, attend.positions_bt, attend)
    last_b = jnp.maximum(length_b - 1, 0)
    hidden_bd = jnp.take_along_axis(hidden_btd, last_b[:, None, None], axis=1)[:, 0]
    tokens_b = sample(model.logits(hidden_bd), floats[:, 0], top_k_b, floats[:, 1], seed_b, start_b + length_b)
    return tokens_b, tuple(attend.pools), last_tokens.at[slot_b].set(tokens_b)


def prefill(
    split: Split,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    last_tokens: jax.Array,
    mm_pool_rd: jax.Array,
    tokens_bt: jax.Array,
    mm_rows_bt: jax.Array,
    ints: jax.Array,
    floats: jax.Array,
) -> tuple[jax.Array, Pools, jax.Array]:
    """Run prompt chunks; see the module for the packed rows.

    Args:
        pools, last_tokens: donated.
        mm_pool_rd: MM tokens on this instance.
        tokens_bt: int32 prompt tokens.
        mm_rows_bt: int32, row of `mm_pool_rd` that stands in a position; negative where the token itself does.

    Returns:
        (token sampled after each row's last one, pools, last_tokens with it at each row's slot).
    """
    text_btd = split.join(leaves).embed(tokens_bt)
    mm_btd = jnp.take(mm_pool_rd, jnp.maximum(mm_rows_bt, 0), axis=0).astype(text_btd.dtype)
    x_btd = jnp.where((mm_rows_bt >= 0)[..., None], mm_btd, text_btd)
    return _run(split, leaves, pools, last_tokens, x_btd, ints, floats)


def decode(
    split: Split,
    leaves: tuple[jax.Array, ...],
    pools: Pools,
    last_tokens: jax.Array,
    ints: jax.Array,
    floats: jax.Array,
) -> tuple[jax.Array, Pools, jax.Array]:
    """One step for every sequence: run the token in its slot, sample the next one into it. Pools and slots donated."""
    x_btd = split.join(leaves).embed(last_tokens[ints[:, 2]])[:, None]
    return _run(split, leaves, pools, last_tokens, x_btd, ints, floats)


def gather_kv(
    pools: Pools, last_tokens: jax.Array, blocks_n: jax.Array, slot: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """What a KV move takes along: a sequence's blocks of every layer, and its last token ``[1]``."""
    return tuple(pool[blocks_n] for pool in pools), last_tokens[slot]


def land_kv(
    pools: Pools,
    last_tokens: jax.Array,
    moved: tuple[jax.Array, ...],
    token: jax.Array,
    blocks_n: jax.Array,
    slot: jax.Array,
) -> tuple[Pools, jax.Array]:
    """Write a moved sequence into this instance's (donated) pools and slot."""
    landed = tuple(pool.at[blocks_n].set(some) for pool, some in zip(pools, moved, strict=True))
    return landed, last_tokens.at[slot].set(token)
