"""Random rows over a random pool, for comparing a kernel with the reference."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from epdjax.models.attention import FULL, AttentionKind
from epdjax.serving.paged import PagedRows, attend_to_gathered


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is fixed when a step is compiled."""

    rows: int
    tokens: int
    pages: int
    block_size: int = 4
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    kind: AttentionKind = FULL

    @property
    def context(self) -> int:
        return self.pages * self.block_size

    def arrays(self, seed: int, dtype: Any = jnp.float32) -> tuple[jnp.ndarray, jnp.ndarray]:
        """Queries and a pool; block 0, which nobody may see, is far too large."""
        rng = np.random.default_rng(seed)
        q = rng.normal(size=(self.rows, self.tokens, self.kv_heads * self.group, self.head_dim))
        pool = rng.normal(size=(self.rows * self.pages + 1, self.block_size, 2 * self.kv_heads, self.head_dim))
        pool[0] = 1e4
        return jnp.asarray(q, dtype), jnp.asarray(pool, dtype)


@dataclasses.dataclass(frozen=True)
class State:
    """Where the rows of a step are: an array each of starts, lengths, block tables and what tokens see."""

    starts: np.ndarray
    lengths: np.ndarray
    tables: np.ndarray
    sees: np.ndarray

    def rows(self, shape: Shape) -> PagedRows:
        arrays = (jnp.asarray(a, jnp.int32) for a in (self.tables, self.starts, self.lengths))
        return PagedRows(*arrays, shape.tokens, shape.block_size, jnp.asarray(self.sees, jnp.int32))


@st.composite
def states(draw: st.DrawFn, shape: Shape, bidirectional: bool = False) -> State:
    """PagedRows anywhere in their sequences, some of them padding as a whole; blocks in any order, and none shared."""
    lengths = np.array([draw(st.integers(0, min(shape.tokens, shape.context))) for _ in range(shape.rows)])
    starts = np.array([draw(st.integers(0, shape.context - n)) if n else 0 for n in lengths])
    order = np.array(draw(st.permutations(range(1, shape.rows * shape.pages + 1))))
    tables = order.reshape(shape.rows, shape.pages)
    held = -(-(starts + lengths) // shape.block_size)
    tables = np.where(np.arange(shape.pages) < held[:, None], tables, 0)
    sees = starts[:, None] + np.arange(shape.tokens)
    if bidirectional:
        for row, (start, length) in enumerate(zip(starts, lengths)):
            if length > 1:  # a picture of any size in the chunk
                first = draw(st.integers(0, length - 2))
                last = draw(st.integers(first + 1, length - 1))
                sees[row, first : last + 1] = start + last
    return State(starts, lengths, tables, sees)


def reference(shape: Shape, state: State, q: jnp.ndarray, pool: jnp.ndarray) -> np.ndarray:
    """What is valid of what the reference makes of it, float32 ``[valid tokens, n, h]``."""
    o_btnh = attend_to_gathered(q, pool, state.rows(shape), shape.kind)
    return valid(shape, state, o_btnh)


def valid(shape: Shape, state: State, o_btnh: jnp.ndarray) -> np.ndarray:
    """The rows of ``o_btnh`` that are no padding; all of it must be finite."""
    o = np.asarray(o_btnh, np.float32)
    assert np.isfinite(o).all()
    return o[np.arange(shape.tokens) < state.lengths[:, None]]
