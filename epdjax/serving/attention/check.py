"""Whether a kernel agrees with the reference on a device: one attention, as a layer calls it, on random numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.mesh.sharding import Submesh
from epdjax.models.attention import FULL, AttentionKind
from epdjax.serving.attention.binding import capability, pages_attend, platform_of, unit_attend
from epdjax.serving.attention.rules import REFERENCE, Need
from epdjax.serving.paged import PagedRows

# Largest difference from the reference in float32 that rounding explains, as a share of the largest value.
TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class Case:
    """What to attend.

    Attributes:
        stage: ``encode``, ``prefill`` or ``decode``.
        rows: units, or sequences.
        tokens: queries in a row: patches of a unit, tokens of a chunk, one in decode.
        context: keys in a row, the queries' own included; of a unit, that many are no padding.
        heads, kv_heads, head_dim: of queries, and of keys and values.
        block_size: tokens of a page.
    """

    stage: str
    rows: int
    tokens: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    kind: AttentionKind = FULL

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: sizes that do not go together.
        """
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are no multiple of {self.kv_heads} KV heads")
        if self.stage == "decode" and self.tokens != 1:
            raise ValueError(f"decode runs one token of each row, not {self.tokens}")
        if self.stage == "encode" and self.context > self.tokens:
            raise ValueError(f"a unit of {self.tokens} patches has no {self.context} that are no padding")
        if self.stage != "encode" and self.context < self.tokens:
            raise ValueError(f"a context of {self.context} does not hold the {self.tokens} tokens being run")

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key it sees, in a row."""
        if self.stage == "encode":
            return self.tokens * self.context
        seen = np.arange(self.context - self.tokens, self.context, dtype=np.int64) + 1
        return int((seen if self.kind.window is None else np.minimum(seen, self.kind.window)).sum())

    @property
    def flops(self) -> int:
        """Floating-point operations: two products for every pair."""
        return 4 * self.rows * self.heads * self.head_dim * self.pairs

    def bytes(self, dtype: Any) -> int:
        """That have to be read and written at least: queries, output, and the keys and values that are seen."""
        seen = self.context if self.kind.window is None else min(self.context, self.kind.window + self.tokens - 1)
        vectors = 2 * self.tokens * self.heads + 2 * seen * self.kv_heads
        return self.rows * vectors * self.head_dim * jnp.dtype(dtype).itemsize

    def need(self, device: jax.Device, dtype: Any) -> Need:
        """What it asks of a kernel."""
        dims, capped = (self.head_dim,), self.kind.softcap is not None
        dtype = jnp.dtype(dtype).name
        return Need(self.stage, platform_of(device), capability(device), dtype, dims, self.kv_heads, capped)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A kernel compiled for a case.

    Attributes:
        program: ``jax.stages.Compiled``, to be called with `arrays`.
        error: largest difference from the reference in float32, as a share of the largest value.
        right: whether rounding explains it.
    """

    program: Any
    arrays: list[jax.Array]
    error: float
    right: bool


def check(case: Case, kernel: str, device: jax.Device, dtype: Any) -> Checked:
    """Compile a kernel and compare it with the reference. Raises what the compiler or the device raises."""
    submesh = Submesh.of([device])
    call, arrays = (_unit if case.stage == "encode" else _pages)(case)
    placed = [jax.device_put(a.astype(dtype) if a.dtype == np.float32 else a, submesh.replicated) for a in arrays]
    exact = [a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in placed]
    program = jax.jit(call(kernel, submesh)).lower(*placed).compile()
    with jax.default_matmul_precision("highest"):  # by default GPUs and TPUs round what they multiply
        expected = np.asarray(jax.jit(call(REFERENCE, submesh))(*exact))
    error = float(np.abs(np.asarray(program(*placed), np.float32) - expected).max() / np.abs(expected).max())
    return Checked(program, placed, error, error <= TOLERANCE[jnp.dtype(dtype).name])  # NaN is not


Call = Callable[[str, Submesh], Callable[..., jax.Array]]


def _unit(case: Case) -> tuple[Call, list[np.ndarray]]:
    """Attention of an encoder, to be given a kernel, and its arrays."""
    rng = np.random.default_rng(0)
    width = (case.rows, case.tokens)
    q = rng.standard_normal((*width, case.heads, case.head_dim), np.float32)
    k, v = (rng.standard_normal((*width, case.kv_heads, case.head_dim), np.float32) for _ in range(2))
    if case.context == case.tokens:
        return lambda kernel, submesh: unit_attend(kernel, submesh.mesh), [q, k, v]
    valid = np.broadcast_to(np.arange(case.tokens) < case.context, width)
    return lambda kernel, submesh: unit_attend(kernel, submesh.mesh), [q, k, v, valid]


def _pages(case: Case) -> tuple[Call, list[np.ndarray]]:
    """Attention over pages in any order."""
    rng = np.random.default_rng(0)
    pages = -(-case.context // case.block_size)
    q = rng.standard_normal((case.rows, case.tokens, case.heads, case.head_dim), np.float32)
    blocks = case.rows * pages
    pool = rng.standard_normal((blocks + 1, case.block_size, 2 * case.kv_heads, case.head_dim), np.float32)
    tables = rng.permutation(np.arange(1, blocks + 1, dtype=np.int32)).reshape(case.rows, pages)
    starts = np.full(case.rows, case.context - case.tokens, np.int32)
    lengths = np.full(case.rows, case.tokens, np.int32)

    def call(kernel: str, submesh: Submesh) -> Callable[..., jax.Array]:
        attend = pages_attend(kernel, submesh.mesh)

        def attended(
            q: jax.Array, pool: jax.Array, tables: jax.Array, starts: jax.Array, lengths: jax.Array
        ) -> jax.Array:
            return attend(q, pool, PagedRows(tables, starts, lengths, case.tokens, case.block_size), case.kind)

        return attended

    return call, [q, pool, tables, starts, lengths]
