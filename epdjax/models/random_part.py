"""Random weights for benchmarks: made on the devices, each parameter straight into its sharding.

What a step costs does not depend on what the weights say, so a model can be measured without its checkpoint.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.checkpoint import Placement
from epdjax.models.registry import Family, abstract_part

SCALE = 0.02  # standard deviation of matrices and tables, as Hugging Face models are initialised


def random_part(
    family: Family, config: Any, part: str, placements: Sequence[Placement], dtype: Any, seed: int = 0
) -> list[nnx.State]:
    """One part of a model with random weights, once per placement: what `load_part` returns of a checkpoint.

    Matrices and tables are normal, norms and other vectors ones, biases zeros. The same seed gives the same weights
    wherever they are placed.

    Args:
        family, config, part, placements: see `epdjax.models.checkpoint.load_part`.
        dtype: of the parameters.
        seed: of the weights.

    Returns:
        One state per placement, with the structure of ``nnx.split(abstract_part(...))[1]``.
    """
    dtype = jnp.dtype(dtype)
    states: list[dict[tuple, nnx.Variable]] = [{} for _ in placements]
    for path, variable in nnx.to_flat_state(nnx.state(abstract_part(family, config, part, dtype))):
        axes, shape = variable.get_metadata("logical_axes"), variable.shape
        name = ".".join(map(str, path))
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{part}.{name}".encode()))
        for state, placement in zip(states, placements, strict=True):
            there = placement(axes, shape)
            if len(shape) > 1:
                value = _normal(shape, dtype, there)(key)
            else:
                value = jax.device_put(np.full(shape, path[-1] != "bias", dtype), there)
            state[path] = variable.replace(value)
    return [nnx.from_flat_state(state) for state in states]


@functools.lru_cache(maxsize=1024)  # the layers of a model are alike: a handful of programs makes all their weights
def _normal(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding
) -> Callable[[jax.Array], jax.Array]:
    def make(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(SCALE, dtype)

    return jax.jit(make, out_shardings=sharding)
