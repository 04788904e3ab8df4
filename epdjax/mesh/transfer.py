"""Moving arrays between submeshes, device to device.

`jax.device_put` onto other devices copies shard by shard where every shard the destination needs exists as it is on the
source. Where one does not (a split array to a whole one, say) JAX quietly assembles it **on the host**. So transfers
here are only ever of the first kind, and refuse the second.
"""

import functools
from typing import Any

import jax
from jax.sharding import Sharding


def move(arrays: Any, shardings: Any) -> Any:
    """Start copying a tree of arrays to other devices; the result is a future like any JAX array.

    Args:
        arrays: tree of arrays.
        shardings: their shardings at the destination; a prefix of the tree.

    Raises:
        ValueError: the copy would go through the host.
    """
    flat = jax.tree.leaves(arrays)
    targets = jax.tree.leaves(jax.tree.map(lambda s, some: jax.tree.map(lambda _: s, some), shardings, arrays))
    for array, target in zip(flat, targets, strict=True):
        if not _stays_on_devices(array.sharding, target, array.shape):
            raise ValueError(f"moving {array.shape} from {array.sharding} to {target} would go through the host")
    return jax.device_put(arrays, shardings)


def shards_in_order(array: jax.Array) -> tuple[jax.Array, ...]:
    """The pieces of an array that is split along its first axis, each on its own device, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return tuple(shards[start] for start in sorted(shards))


@functools.lru_cache(maxsize=4096)
def _stays_on_devices(source: Sharding, target: Sharding, shape: tuple[int, ...]) -> bool:
    def pieces(sharding: Sharding) -> set[tuple[tuple[int, int, int], ...]]:
        indices = sharding.devices_indices_map(shape).values()
        return {tuple(part.indices(size) for part, size in zip(index, shape)) for index in indices}

    return pieces(target) <= pieces(source)
