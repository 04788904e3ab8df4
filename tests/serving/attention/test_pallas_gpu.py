"""The Pallas kernel against the reference, run by Pallas' interpreter: it has never run on a GPU."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.models.attention import AttentionKind
from epdjax.serving.attention import pallas_gpu
from tests.serving.attention.cases import Shape, State, reference, states, valid

DECODE = Shape(rows=3, tokens=1, pages=40, group=7, kv_heads=2)
SHAPES = {
    "decode": DECODE,
    "decode, one query head for each key head": Shape(rows=2, tokens=1, pages=5, group=1, kv_heads=3, head_dim=32),
    "decode, window": Shape(rows=2, tokens=1, pages=40, kind=AttentionKind(window=9)),
    "prefill": Shape(rows=2, tokens=24, pages=9, group=3),
    "prefill in several tiles": Shape(rows=1, tokens=100, pages=40, group=2, kv_heads=1),
    "prefill, window and cap": Shape(rows=2, tokens=12, pages=30, kind=AttentionKind(window=7, scale=0.3, softcap=2.0)),
    "pages of 16": Shape(rows=2, tokens=3, pages=3, block_size=16, group=4),
}


@functools.cache
def compiled(shape: Shape, splits: int | None) -> Callable[..., jax.Array]:
    """One program for all states of a shape."""
    kind = shape.kind
    scale = shape.head_dim**-0.5 if kind.scale is None else kind.scale
    return jax.jit(
        functools.partial(pallas_gpu.paged_attention, scale=scale, softcap=kind.softcap, splits=splits, interpret=True)
    )


def kernel(shape: Shape, state: State, q: jax.Array, pool: jax.Array, splits: int | None = None) -> np.ndarray:
    arrays = pallas_gpu.reads(state.rows(shape), shape.kind)
    return valid(shape, state, compiled(shape, splits)(q, pool, *arrays))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("splits", [1, 3])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_it_agrees_with_the_reference(name: str, splits: int, data: st.DataObject) -> None:
    shape = SHAPES[name]
    state = data.draw(states(shape))
    q, pool = shape.arrays(seed=data.draw(st.integers(0, 3)))
    np.testing.assert_allclose(kernel(shape, state, q, pool, splits), reference(shape, state, q, pool), atol=2e-5)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_pictures_see_themselves_whole(data: st.DataObject) -> None:
    shape = Shape(rows=2, tokens=12, pages=8, kind=AttentionKind(window=6))
    state = data.draw(states(shape, bidirectional=True))
    q, pool = shape.arrays(seed=1)
    np.testing.assert_allclose(kernel(shape, state, q, pool, 1), reference(shape, state, q, pool), atol=2e-5)


def test_bfloat16_is_as_close_as_its_rounding() -> None:
    state = State(
        np.array([100, 30, 0]), np.array([1, 1, 1]), np.arange(1, 121).reshape(3, 40), np.array([[100], [30], [0]])
    )
    q, pool = DECODE.arrays(0, jnp.bfloat16)
    exact = reference(DECODE, state, q.astype(jnp.float32), pool.astype(jnp.float32))
    np.testing.assert_allclose(kernel(DECODE, state, q, pool), exact, atol=2e-2)


def test_padding_is_zero() -> None:
    """PagedRows of zeros read nothing, so not even block 0, which is written to by everybody."""
    state = State(np.zeros(3, int), np.zeros(3, int), np.zeros((3, 40), int), np.zeros((3, 1), int))
    q, pool = DECODE.arrays(0)
    o = compiled(DECODE, None)(q, pool, *pallas_gpu.reads(state.rows(DECODE), DECODE.kind))
    assert not np.asarray(o).any()
