"""What a model takes of a device's memory in each role, read off the compiler, with or without the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.mesh.devices import InstanceMesh
from epdjax.mesh.sharding import Submesh
from epdjax.models.registry import Family
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import check_tensor_widths, scheduling_for
from epdjax.serving.instance import Instance
from epdjax.serving.memory import PROBE_BLOCKS, block_bytes, largest_steps, mm_pool_bytes
from epdjax.serving.workshop import Workshop, parts_of

STEP_OF_ROLE = {"E": "encode", "P": "prefill", "D": "decode"}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes per device of a model over `tensor` devices, whatever roles it performs there.

    Attributes:
        parts: of the weights of each part of the model.
        steps: of the temporaries and output of the largest encode, prefill and decode.
        mm_pool: of the MM pool of an instance that prefills.
        kv_block: of a KV block of `block_size` tokens, all layers together.
    """

    tensor: int
    parts: dict[str, int]
    steps: dict[str, int]
    mm_pool: int
    kv_block: int
    block_size: int

    def weights(self, roles: str) -> int:
        """Weights that an instance with these roles holds: each part once."""
        return sum(self.parts[part] for part in parts_of(roles))

    def working(self, roles: str) -> int:
        """The largest step of an instance with these roles, and its MM pool."""
        return max(self.steps[STEP_OF_ROLE[role]] for role in roles) + self.mm_pool * ("P" in roles)

    def left(self, roles: str, budget: float) -> float:
        """What `budget` bytes of a device leave for the KV pool; negative where they do not even hold the rest."""
        return budget - self.weights(roles) - self.working(roles)

    def kv_tokens(self, roles: str, budget: float) -> int:
        """Tokens whose keys and values that holds."""
        return max(0, int(self.left(roles, budget) // self.kv_block)) * self.block_size


def shaped_instance(
    family: Family,
    model: Any,
    roles: str,
    devices: list[jax.Device],
    config: EngineConfig,
    dtype: Any = jnp.bfloat16,
    kv_blocks: int = PROBE_BLOCKS,
) -> Instance:
    """An instance whose parameters are shapes: its steps can be compiled, also for devices that are not there.

    Args:
        family, model: a family and a config of it.
        roles: that it performs.
        devices: one for each slice of its tensors, see `epdjax.mesh.targets.target_devices`.
        config: of the engine: shapes and limits.
        dtype: of weights and pools.
        kv_blocks: in its KV pool.

    Raises:
        ValueError: the model's heads cannot be split over so many devices.
    """
    place = InstanceMesh(roles, roles, Submesh.of(devices, tensor=len(devices)))
    check_tensor_widths([place], model)
    workshop = Workshop(config, family, model, scheduling_for(config, model), jnp.dtype(dtype))
    return workshop.instance(place, kv_blocks)


def footprint(
    family: Family, model: Any, devices: list[jax.Device], config: EngineConfig, dtype: Any = jnp.bfloat16
) -> Footprint:
    """Compile the largest encode, prefill and decode of a model and read what they take.

    Raises:
        ValueError: see `shaped_instance`.
    """
    instance = shaped_instance(family, model, "EPD", devices, config, dtype)
    return Footprint(
        tensor=len(devices),
        parts={part: sum(_shard_bytes(leaf) for leaf in leaves) for part, (_, leaves) in instance.parts.items()},
        steps=largest_steps(instance),
        mm_pool=mm_pool_bytes(instance),
        kv_block=block_bytes(instance),
        block_size=instance.block_size,
    )


def _shard_bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize
