"""The few layers every model here is made of.

Kernels are stored ``[out, in]``, as in torch. Each parameter names its *logical* axes in its ``logical_axes``
metadata; where those land on devices is decided elsewhere (`epdjax.mesh.sharding`), so nothing in this package knows a
mesh.

Matrix products run in the parameters' dtype; norms are computed in float32 and rounded back, as the Hugging Face
references do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation a Hugging Face config calls `name`.

    Raises:
        ValueError: the name is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def param(value: jax.Array, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter whose dimensions carry the logical names `axes`."""
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, logical_axes=axes)


class Linear(nnx.Module):
    """``x @ kernel.T + bias`` (torch ``nn.Linear``).

    The kernel is ``[out, in]`` because XLA:CPU multiplies a few rows by it faster than in the other order. A decode
    step of 0.2 billion float32 parameters on two idle cores (JAX 0.10.2), this order before the other: 31 and 34 ms
    for 1 row, 59 and 64 for 4, 87 and 96 for 16, 118 and 146 for 32; prefill and encoding take the same in both.
    Leaving the order and giving the parameter a layout of its own does not help: XLA:CPU then copies it.

    Args:
        axes: logical names of the input's and of the output's axis.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None],
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.kernel = param(init(rngs.params(), (d_out, d_in), dtype), axes[::-1])
        self.bias = param(jnp.zeros((d_out,), dtype), (axes[1],)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("...d,fd->...f", x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis (``Qwen2RMSNorm`` and its like).

    With `offset` it scales by ``1 + scale``, before it leaves float32 (``Gemma3RMSNorm``).
    """

    def __init__(self, d: int, *, eps: float, dtype: jnp.dtype, offset: bool = False):
        self.scale = param(jnp.zeros((d,), dtype) if offset else jnp.ones((d,), dtype), (None,))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        if self.offset:
            return (x32 * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)
        return self.scale[...] * x32.astype(x.dtype)


class LayerNorm(nnx.Module):
    """torch ``nn.LayerNorm`` over the last axis, with scale and bias."""

    def __init__(self, d: int, *, eps: float, dtype: jnp.dtype):
        self.scale = param(jnp.ones((d,), dtype), (None,))
        self.bias = param(jnp.zeros((d,), dtype), (None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


def norm(kind: str, d: int, *, eps: float, dtype: jnp.dtype) -> RMSNorm | LayerNorm:
    """The norm a config calls ``rms_norm`` or ``layer_norm``."""
    kinds: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}
    if kind not in kinds:
        raise ValueError(f"unknown norm {kind!r}; known: {', '.join(sorted(kinds))}")
    return kinds[kind](d, eps=eps, dtype=dtype)


def normalise(pixels: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 pixels ``[..., channels]`` to float32, as the HF image processors do: ``(x / 255 - mean) / std``."""
    scaled = pixels.astype(jnp.float32) * (1 / 255)
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
