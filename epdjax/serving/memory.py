"""How many KV blocks an instance can hold: what its device's memory leaves beside weights and the steps themselves.

The steps' own needs are the compiler's, not a guess: the largest prefill and decode are compiled with a small pool, and
their temporaries read off.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import IN_FLIGHT, InstanceSpec
from epdjax.serving.programs import Job, compile_all, jobs_of
from epdjax.serving.slots import Slots

PROBE_BLOCKS = 64


def choose_kv_blocks(
    config: EngineConfig, scheduling: SchedulerConfig, make: Callable[[int], Instance], in_use: int | None = None
) -> int:
    """KV blocks for one instance: what was asked for, or else what fits.

    Args:
        make: an instance with so many blocks.
        in_use: bytes of each of its devices that are taken already; None: what the devices say.

    Where the device does not tell its memory (CPU), what is asked for is believed, and else there are enough for half
    the slots at full length.

    Raises:
        ValueError: memory does not hold them, or not even one full-length sequence; the message says what would fit.
    """
    probe = make(PROBE_BLOCKS)
    if not (probe.performs("P") or probe.performs("D")):
        return 1
    pages = -(-scheduling.max_model_len // scheduling.block_size)
    slots = scheduling.buckets.decode_rows[-1]
    stats = probe.submesh.devices[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return config.kv_blocks or pages * max(1, slots // 2)
    taken = stats.get("bytes_in_use", 0) if in_use is None else in_use
    budget = stats["bytes_limit"] * config.memory_share - taken
    block = block_bytes(probe)
    kept = step_bytes(probe) + block  # the one that takes padding
    return fit(budget, kept, block, least=pages, most=pages * slots, wanted=config.kv_blocks)


def fit(budget: float, temporaries: int, block: int, *, least: int, most: int, wanted: int | None = None) -> int:
    """Blocks of `block` bytes that `budget` bytes hold beside `temporaries`, at most `most`; or `wanted`, if they do.

    Raises:
        ValueError: there is room for fewer than `least`, or than `wanted`.
    """
    blocks = int((budget - temporaries) // block)
    if wanted is not None:
        if wanted > blocks:
            raise ValueError(
                f"--kv-blocks {wanted} take {wanted * block / 2**30:.1f} GiB of a device; its memory leaves room for "
                f"{max(blocks, 0)}"
            )
        return wanted
    if blocks < least:
        missing = (least - blocks) * block / 2**30
        raise ValueError(
            f"a sequence of full length takes {least} KV blocks and the device's memory leaves room for "
            f"{max(blocks, 0)}, {missing:.1f} GiB short; lower --max-model-len or --max-chunk, raise --memory-share, "
            "or give the instance a larger tensor width"
        )
    return min(blocks, most)


def block_bytes(instance: Instance) -> int:
    """Bytes that a KV block takes on one device, all layers together."""
    per_layer = prod(instance.kv_sharding.shard_shape(instance.kv_shape)[1:]) * instance.dtype.itemsize
    return per_layer * instance.model.text.num_layers


def step_bytes(instance: Instance) -> int:
    """Bytes beside weights and KV pool: the largest step's temporaries and output, the MM pool, the slots, and what is
    staged."""
    kept = mm_pool_bytes(instance) + slot_bytes(instance)
    if instance.performs("E"):
        units, size = largest_units(instance.buckets)[0]
        kept += staged_bytes(instance.model, instance.dtype, units, size, instance.spec.staging)
    return max(largest_steps(instance).values(), default=0) + kept


def largest_units(buckets: Buckets) -> list[tuple[int, int]]:
    """(units per device, size) of encode steps that may be the largest: with most in it, and of the largest units."""
    shapes = [(buckets.unit_rows(size)[-1], size) for size in buckets.unit_sizes]
    return list(dict.fromkeys([max(shapes, key=lambda shape: shape[0] * shape[1]), shapes[-1]]))


def staged_bytes(model: Any, dtype: Any, units: int, size: int, results: int = InstanceSpec.staging) -> int:
    """Bytes an encoder's device holds beside the step that runs: the other results that may wait to be moved, and the
    inputs of steps given to it ahead of time.

    Args:
        units: of a step, for each device. size: that they are padded to. results: that may wait.
    """
    inputs = sum(prod(dims) * np.dtype(kind).itemsize for dims, kind in model.unit_inputs(size).values())
    result = units * model.unit_tokens(size) * model.mm_width * np.dtype(dtype).itemsize
    return (results - 1) * result + IN_FLIGHT * units * inputs


def mm_pool_bytes(instance: Instance) -> int:
    """Bytes of the MM pool."""
    return prod(instance.mm_shape) * instance.dtype.itemsize


def slot_bytes(instance: Instance) -> int:
    """Bytes of what is kept of each sequence."""
    shapes = Slots.shapes(instance.spec.slots, instance.longest).values()
    return sum(prod(dims) * np.dtype(dtype).itemsize for dims, dtype in shapes)


def largest_steps(instance: Instance) -> dict[str, int]:
    """Bytes per device of the temporaries and the output of the largest encode, prefill and decode, as compiled."""
    largest: dict[str, Job] = {}
    for job in jobs_of(instance, [instance]):
        if job.key[0] in ("encode", "prefill", "decode"):
            before = largest.get(job.key[0])
            # Units times their size, rows times tokens times pages: the smallest units come in the largest numbers.
            if before is None or prod(job.key[1]) >= prod(before.key[1]):
                largest[job.key[0]] = job
    compile_all(list(largest.values()), {})
    sizes = {}
    for step, job in largest.items():
        analysis = instance.programs[job.key].memory_analysis()
        sizes[step] = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    instance.programs.clear()
    return sizes
