"""Moving arrays between submeshes, device to device.

`jax.device_put` onto other devices copies shard by shard where every shard the destination needs exists as it is on the
source. Where one does not (a split array to a whole one, say) JAX quietly assembles it **on the host**. So transfers
here are only ever of the first kind, and refuse the second.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Sharding, SingleDeviceSharding


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


def gather_shards(wanted: Sequence[tuple[Sequence[jax.Array], Sharding]]) -> list[jax.Array | None]:
    """Arrays at new shardings, out of copies that live elsewhere: shards that are on a device already are taken as they
    are, others are copied from device to device, all together.

    Args:
        wanted: for each array its copies (of equal contents and shape) and the sharding it is to have.

    Returns:
        The arrays, futures like any; None for one of which some shard exists nowhere as it is needed.
    """
    plans = [_plan_shards(copies, sharding) for copies, sharding in wanted]
    far = [(data, device) for plan in plans if plan for device, data in plan if data.device != device]
    copied = iter(jax.device_put([data for data, _ in far], [SingleDeviceSharding(device) for _, device in far]))
    arrays: list[jax.Array | None] = []
    for (copies, sharding), plan in zip(wanted, plans, strict=True):
        if plan is None:
            arrays.append(None)
            continue
        shards = [data if data.device == device else next(copied) for device, data in plan]
        arrays.append(jax.make_array_from_single_device_arrays(copies[0].shape, sharding, shards))
    return arrays


def _plan_shards(copies: Sequence[jax.Array], sharding: Sharding) -> list[tuple[jax.Device, jax.Array]] | None:
    """For each device of a sharding the shard it gets, from itself if it has it."""
    if not copies:
        return None
    shape = copies[0].shape
    shards: dict[tuple, dict[jax.Device, jax.Array]] = {}
    for copy in copies:
        for shard in copy.addressable_shards:
            shards.setdefault(_span(shard.index, shape), {})[shard.device] = shard.data
    plan: list[tuple[jax.Device, jax.Array]] = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        found = shards.get(_span(index, shape))
        if found is None:
            return None
        plan.append((device, found[device] if device in found else next(iter(found.values()))))
    return plan


def _span(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(part.indices(size) for part, size in zip(index, shape))


def shards_in_order(array: jax.Array) -> tuple[jax.Array, ...]:
    """The pieces of an array that is split along its first axis, each on its own device, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return tuple(shards[start] for start in sorted(shards))


@functools.lru_cache(maxsize=4096)
def _stays_on_devices(source: Sharding, target: Sharding, shape: tuple[int, ...]) -> bool:
    def pieces(sharding: Sharding) -> set[tuple[tuple[int, int, int], ...]]:
        indices = sharding.devices_indices_map(shape).values()
        return {_span(index, shape) for index in indices}

    return pieces(target) <= pieces(source)
