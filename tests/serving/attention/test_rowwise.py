"""The kernel for CPUs agrees with the reference, by row and by head."""

from collections.abc import Iterator
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.models.attention import AttentionKind, blocked_attention
from epdjax.serving.attention import rowwise
from tests.serving.attention.cases import Shape, reference, states, valid

SHAPES = [
    Shape(rows=3, tokens=1, pages=5),
    Shape(rows=2, tokens=7, pages=4, kv_heads=1, group=3, kind=AttentionKind(window=5, softcap=20.0)),
    Shape(rows=1, tokens=12, pages=6, kv_heads=3, group=1, head_dim=20, kind=AttentionKind(scale=0.3)),
]


@pytest.fixture(params=[0, 2**60], ids=["by head", "by row"], scope="module")
def many_scores(request: pytest.FixtureRequest) -> Iterator[None]:
    with mock.patch.object(rowwise, "MANY_SCORES", request.param):
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_pages(shape: Shape, many_scores: None) -> None:
    @settings(max_examples=15, deadline=None)
    @given(states(shape, bidirectional=True), st.integers(0, 99))
    def agrees(state, seed: int) -> None:
        q, pool = shape.arrays(seed)
        made = rowwise.attend(q, pool, *rowwise.reads(state.rows(shape), shape.kind), kind=shape.kind)
        np.testing.assert_allclose(valid(shape, state, made), reference(shape, state, q, pool), atol=1e-5)

    agrees()


@pytest.mark.parametrize("padded", [False, True])
def test_units(padded: bool, many_scores: None) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 33, 4, 20)), jnp.float32) for _ in range(3))
    seen = jnp.asarray(rng.random((3, 33)) < 0.7) if padded else None
    made = rowwise.attend_to_unit(q, k, v, seen, scattered=True)
    np.testing.assert_allclose(made, blocked_attention(q, k, v, seen), atol=1e-5)
