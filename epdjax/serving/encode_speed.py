"""How fast an encoder is: the engine's own encode step with random weights, timed on the device at hand."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.mesh.devices import InstanceMesh
from epdjax.mesh.sharding import Submesh
from epdjax.models.media import EncodeUnit
from epdjax.models.random_part import random_part
from epdjax.models.registry import Family, abstract_part
from epdjax.serving.buckets import Buckets, smallest
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.programs import compile_all, jobs_of
from epdjax.serving.steps import Split


@dataclasses.dataclass(frozen=True)
class EncodeSpeed:
    """One encode step.

    Attributes:
        units: encoded together. size: of the bucket they are padded to, in the family's measure.
        flops: floating-point operations of the step, padding included, as XLA's cost analysis counts them before it
            optimises; the bodies of loops (units of more than 2048 patches attend in one) are counted once.
        seconds: median from host arrays to finished MM tokens.
        weights, working: bytes of the weights, and of the step's temporaries and output.
    """

    units: int
    size: int
    flops: float
    seconds: float
    weights: int
    working: int

    @property
    def flops_per_s(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds

    @property
    def units_per_s(self) -> float:
        """Encode units per second."""
        return self.units / self.seconds


def measure_encode(
    family: Family,
    model: Any,
    units: int,
    size: int = 1,
    *,
    dtype: Any = jnp.bfloat16,
    device: jax.Device | None = None,
    repeats: int = 5,
) -> EncodeSpeed:
    """Encode `units` units of `size` (the family's measure) in one step, `repeats` times after a first time.

    Args:
        family, model: a family and a config of it.
        dtype: of weights and MM tokens.
        device: default: the first.
    """
    submesh = Submesh.of([device or jax.devices()[0]])
    dtype = jnp.dtype(dtype)
    bucket = smallest(model.unit_sizes(model.text.max_position_embeddings), size)
    (state,) = random_part(family, model, "encoder", [submesh.sharding], dtype)
    leaves = tuple(jax.tree.leaves(state))
    split, _ = Split.of(abstract_part(family, model, "encoder", dtype))
    instance = Instance(
        InstanceMesh("E", "E", submesh),
        InstanceSpec("E", "E", kv_blocks=0, mm_blocks=0, slots=0, encode_width=1),
        model,
        {"encoder": (split, leaves)},
        Buckets((units,), ((1, 16),), (1,), (1,), (1,), (1,), unit_sizes=(bucket,)),
        dtype=dtype,
        block_size=16,
        mm_block_size=model.mm_block_size,
    )
    (job,) = jobs_of(instance, [instance])
    flops = job.lower().cost_analysis()["flops"]
    compile_all([job], {})
    memory = instance.programs[job.key].memory_analysis()
    media = [random_unit(model, size, seed) for seed in range(units)]
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        jax.block_until_ready(instance.encode(0, media))
        seconds.append(time.perf_counter() - started)
    return EncodeSpeed(
        units,
        bucket,
        flops,
        statistics.median(seconds[1:]),
        sum(leaf.nbytes for leaf in leaves),
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
    )


def random_unit(model: Any, size: int, seed: int = 0) -> EncodeUnit:
    """An encode unit of that size of noise: random bytes and waves, every mask true, every index 0."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for name, (dims, dtype) in model.unit_inputs(size).items():
        if dtype == np.uint8:
            inputs[name] = rng.integers(0, 256, dims, np.uint8)
        elif np.issubdtype(dtype, np.floating):
            inputs[name] = rng.standard_normal(dims).astype(dtype)
        else:
            inputs[name] = np.full(dims, dtype == np.bool_, dtype)
    return EncodeUnit(inputs, size, model.unit_tokens(size))
