"""What cuDNN and JAX's ragged kernel are told, read by JAX's own references for them: neither can run on a CPU.

This shows that the masks, lengths and orders they are given mean what the reference means. It does not show that the
kernels themselves are right; those have been compiled (`test_compiled.py`) and never run.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from epdjax.models.attention import AttentionKind, blocked_attention
from epdjax.serving.attention import cudnn, ragged_tpu
from tests.serving.attention.cases import Shape, reference, states, valid


@pytest.fixture(scope="module", autouse=True)
def references() -> object:
    """JAX's XLA implementation stands in for cuDNN, and its plain one for the ragged kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", in_xla(jax.nn.dot_product_attention))
        patch.setattr(ragged_tpu, "ragged_paged_attention", ref_ragged_paged_attention)
        yield


def in_xla(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def called(*arrays: jax.Array, implementation: str, **settings: object) -> jax.Array:
        assert implementation == "cudnn"
        return attend(*arrays, implementation="xla", **settings)  # type: ignore[arg-type]

    return called


def units(seed: int, t: int, s: int, heads: int = 2) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (3, n, heads, 8)) for key, n in zip(keys, (t, s, s))]


@pytest.mark.parametrize(("t", "s"), [(17, 17), (4, 17)])
def test_units_without_padding(t: int, s: int) -> None:
    q, k, v = units(0, t, s)
    np.testing.assert_allclose(cudnn.attend_to_unit(q, k, v), blocked_attention(q, k, v), atol=1e-5)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 17), min_size=3, max_size=3))
def test_units_with_padding_behind(lengths: list[int]) -> None:
    q, k, v = units(1, 17, 17)
    mask = jnp.arange(17) < jnp.array(lengths)[:, None]
    np.testing.assert_allclose(cudnn.attend_to_unit(q, k, v, mask), blocked_attention(q, k, v, mask), atol=1e-5)


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=3 * 17, max_size=3 * 17))
def test_units_with_padding_anywhere(flags: list[bool]) -> None:
    q, k, v = units(2, 17, 17)
    mask = jnp.array(flags).reshape(3, 17).at[:, 5].set(True)
    ours = cudnn.attend_to_unit(q, k, v, mask, scattered=True)
    np.testing.assert_allclose(ours, blocked_attention(q, k, v, mask, scattered=True), atol=1e-5)


def test_a_unit_of_padding_is_finite() -> None:
    q, k, v = units(3, 17, 17)
    assert np.isfinite(cudnn.attend_to_unit(q, k, v, jnp.zeros((3, 17), bool))).all()


PREFILL = Shape(rows=2, tokens=12, pages=6)
WINDOW = Shape(rows=2, tokens=12, pages=6, kind=AttentionKind(window=5, scale=0.4))


@pytest.mark.parametrize("shape", [PREFILL, WINDOW], ids=["full", "window"])
@pytest.mark.parametrize("bidirectional", [False, True])
@settings(max_examples=12)
@given(data=st.data())
def test_cudnn_prefill(shape: Shape, bidirectional: bool, data: st.DataObject) -> None:
    state = data.draw(states(shape, bidirectional))
    q, pool = shape.arrays(0)
    o = cudnn.attend(q, pool, *cudnn.reads(state.rows(shape), shape.kind), kind=shape.kind)
    np.testing.assert_allclose(valid(shape, state, o), reference(shape, state, q, pool), atol=1e-5)


RAGGED = {
    "prefill": PREFILL,
    "window and cap": Shape(rows=2, tokens=12, pages=6, kind=AttentionKind(window=5, scale=0.4, softcap=2.0)),
    "decode": Shape(rows=3, tokens=1, pages=6, group=3),
}


@pytest.mark.parametrize("name", RAGGED)
@settings(max_examples=3)
@given(data=st.data())
def test_ragged(name: str, data: st.DataObject) -> None:
    shape = RAGGED[name]
    state = data.draw(states(shape))
    q, pool = shape.arrays(0)
    attend = functools.partial(ragged_tpu.attend, kind=shape.kind, tuned=True)
    o = attend(q, pool, *ragged_tpu.reads(state.rows(shape), shape.kind))
    np.testing.assert_allclose(valid(shape, state, o), reference(shape, state, q, pool), atol=1e-5)
