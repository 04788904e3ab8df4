"""Counting: floating-point operations and bytes of the steps of a model, without running or compiling them.

The language model is counted from its config. Encoders differ from family to family, so theirs are counted by tracing
the very encode step over shapes and adding up its products.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.models.attention import dense_attention
from epdjax.models.registry import Family, abstract_part
from epdjax.models.text_config import TextConfig
from epdjax.serving import steps
from epdjax.serving.steps import Split


@dataclasses.dataclass(frozen=True)
class LanguageCount:
    """Of a decoder, all layers together; a multiplication and its addition are two operations.

    Attributes:
        token_flops: of a token in all products with weights, the vocabulary's left out.
        row_flops: of the scores of a vocabulary, which every row of a step has computed once.
        pair_flops: of a query and a key it sees, in one layer.
        windows: (tokens that a layer sees at most, layers of that kind); infinite where it sees all.
        weight_bytes: that a step reads, however small it is.
        token_bytes: that products of a token read and write besides. kv_bytes: of a token's key and value in one layer.
        reduced_bytes: that devices which share the tensors have to add up for each token.
    """

    token_flops: float
    row_flops: float
    pair_flops: float
    windows: tuple[tuple[float, int], ...]
    weight_bytes: float
    token_bytes: float
    kv_bytes: float
    reduced_bytes: float

    @classmethod
    def of(cls, text: TextConfig, dtype: Any) -> "LanguageCount":
        """Count a decoder with weights and pools of `dtype`."""
        d, f, layers = text.hidden_size, text.mlp_size, text.num_layers
        q, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
        itemsize = jnp.dtype(dtype).itemsize
        kernels = 2 * d * q + 2 * d * kv + 3 * d * f
        # In and out of each product, once; of the attention: queries in, keys and values written, what it returns.
        activations = (3 * d + q + 2 * kv) + (q + d) + (2 * d + 2 * f) + (f + d) + (2 * q + 2 * kv)
        kinds = [math.inf if window is None else float(window) for window in text.windows or (None,) * layers]
        return cls(
            token_flops=2.0 * layers * kernels,
            row_flops=2.0 * d * text.vocab_size,
            pair_flops=4.0 * q,
            windows=tuple((kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)),
            weight_bytes=float(itemsize * (layers * (kernels + 2 * d) + d + d * text.vocab_size)),
            token_bytes=float(itemsize * (layers * activations + d)),
            kv_bytes=float(itemsize * 2 * kv),
            reduced_bytes=float(itemsize * 2 * layers * d),
        )

    def keys(self, contexts: Sequence[int]) -> float:
        """Keys that tokens at the ends of such contexts see, over all layers."""
        whole = sum(contexts)
        return sum(
            layers * (whole if window == math.inf else sum([min(window, c) for c in contexts]))
            for window, layers in self.windows
        )

    def pairs(self, start: int, length: int) -> float:
        """Pairs of a query and a key it sees of tokens ``start .. start + length``, over all layers."""
        return sum(layers * _seen(start, length, window) for window, layers in self.windows)


def _seen(start: int, length: int, window: float) -> float:
    """Keys that tokens ``start .. start + length`` see together, each at most `window`, itself included."""
    growing = min(length, max(0.0, window - start))
    rest = length - growing
    return growing * start + growing * (growing + 1) / 2 + (rest * window if rest else 0.0)


@dataclasses.dataclass(frozen=True)
class EncodeCount:
    """Of an encoder.

    Attributes:
        flops: of a unit. unit_bytes: that its products read and write besides the weights.
        weight_bytes: that a step reads, however small it is.
    """

    flops: float
    unit_bytes: float
    weight_bytes: float


@functools.lru_cache(maxsize=256)
def encode_count(family: Family, model: Any, size: int, dtype: Any = "bfloat16") -> EncodeCount:
    """Count an encode unit padded to `size`, in the family's measure.

    Scores of the attention are counted as operations, and not as bytes: kernels keep them out of memory.

    Args:
        family, model: a family and a config of it.
        dtype: of weights and MM tokens.
    """
    split, leaves = _shapes(family, model, jnp.dtype(dtype).name)
    inputs = {name: jax.ShapeDtypeStruct((1, *dims), kind) for name, (dims, kind) in model.unit_inputs(size).items()}
    traced = jax.make_jaxpr(functools.partial(steps.encode, split, _attend))(leaves, inputs)
    flops = moved = 0.0
    for times, product in _products(traced.jaxpr):
        flops += times * _product_flops(product)
        moved += times * _product_bytes(product)
    return EncodeCount(flops, moved, float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)))


@functools.lru_cache(maxsize=16)
def _shapes(family: Family, model: Any, dtype: str) -> tuple[Split, tuple[Any, ...]]:
    split, leaves = Split.of(abstract_part(family, model, "encoder", dtype))
    return split, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
) -> jax.Array:
    """All at once: it is only traced."""
    return dense_attention(q, k, v)


def _products(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """Products in a program, and how often each is run; of the branches of a choice all are counted."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield times, equation
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                program = getattr(part, "jaxpr", part)
                if hasattr(program, "eqns"):
                    yield from _products(program, inner)


def _product_flops(product: Any) -> float:
    left, right = (operand.aval for operand in product.invars[:2])
    (result,) = (made.aval for made in product.outvars)
    if product.primitive.name == "conv_general_dilated":
        out_features = right.shape[product.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * result.size * right.size / out_features
    (contracted, _), _ = product.params["dimension_numbers"]
    return 2.0 * result.size * math.prod(left.shape[axis] for axis in contracted)


def _product_bytes(product: Any) -> float:
    """What a product reads and writes, without weights and without scores."""
    arrays = [var.aval for var in (*product.invars[:2], *product.outvars)]
    sizes = [array.size * array.dtype.itemsize for array in arrays]
    if product.primitive.name == "dot_general":
        _, (batch, _) = product.params["dimension_numbers"]
        if batch:
            return float(sum(sizes) - max(sizes))  # attention: the scores are the largest of the three
    return float(sizes[0] + sizes[2])
