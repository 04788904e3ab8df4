"""Named presets: families and configs of published models, without their weights.

For planning and benchmarks: what a model of that size costs does not depend on what its weights say.
"""

from math import prod
from typing import Any

import jax.numpy as jnp
from flax import nnx

from epdjax.models.preset_configs import PRESETS
from epdjax.models.registry import Family, abstract_part, family_for
from epdjax.nearest import nearest

__all__ = ["PRESETS", "parameter_count", "preset"]


def preset(name: str) -> tuple[Family, Any]:
    """The family of a published model, and its config as the family reads it.

    Args:
        name: one of `PRESETS`, in any case.

    Raises:
        ValueError: no such preset; the message has the nearest and all there are.
    """
    found = {known.lower(): known for known in PRESETS}.get(name.lower())
    if found is None:
        raise ValueError(f"no preset {name!r}; {nearest(name, PRESETS)}")
    known = PRESETS[found]
    family = family_for(known.hf_config)
    return family, family.read_config(known.hf_config, known.preprocessor)


def parameter_count(family: Family, config: Any) -> dict[str, int]:
    """Parameters of each part of a model, counted on shapes: no array is made."""
    return {
        part: sum(prod(leaf.shape) for leaf in _leaves(abstract_part(family, config, part, jnp.bfloat16)))
        for part in family.parts
    }


def _leaves(module: nnx.Module) -> list[nnx.Variable]:
    return [variable for _, variable in nnx.to_flat_state(nnx.state(module))]
