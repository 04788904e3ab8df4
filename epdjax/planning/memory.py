"""What each instance of a mesh takes of its devices' memory: its steps, compiled for a chip that need not be here.

Pools have the sizes that serving would give them; what steps need beside them is the compiler's word.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from math import inf, prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.mesh import chips
from epdjax.mesh.devices import InstanceMesh, resolve_mesh
from epdjax.mesh.sharding import Submesh
from epdjax.mesh.spec import Group, MeshSpec
from epdjax.mesh.targets import TPUS, target_devices, target_memory
from epdjax.models.presets import PRESETS, preset
from epdjax.models.registry import Family, config_of, dtype_of, family_of
from epdjax.nearest import nearest
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import check_tensor_widths, scheduling_for
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.memory import PROBE_BLOCKS, block_bytes, fit, largest_steps, largest_units, staged_bytes
from epdjax.serving.slots import Slots
from epdjax.serving.workshop import Parts, Workshop

log = logging.getLogger(__name__)

HERE = "here"
CHIPS = (*chips.CHIPS, HERE)
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A model to plan for. Its weights are not needed.

    Attributes:
        name: of the preset, or the folder.
        dtype: of weights and pools.
    """

    name: str
    family: Family
    config: Any
    dtype: jnp.dtype

    @classmethod
    def of(cls, name: str, dtype: str = "auto") -> "PlannedModel":
        """A preset, or the checkpoint in a folder.

        Args:
            dtype: ``auto``: the checkpoint's own; bfloat16 for a preset.

        Raises:
            ValueError: neither a preset (the nearest is named) nor a folder, or a checkpoint that is not supported.
        """
        if Path(name).is_dir():
            own = dtype_of(name) if dtype == "auto" else jnp.dtype(dtype)
            return cls(name, family_of(name), config_of(name), own)
        if name.lower() not in (known.lower() for known in PRESETS):
            raise ValueError(f"{name!r} is no folder and no preset; {nearest(name, PRESETS)}")
        family, config = preset(name)
        return cls(name, family, config, jnp.dtype("bfloat16" if dtype == "auto" else dtype))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of device to plan for.

    Attributes:
        memory: bytes of one.
        devices: makes so many of them to compile for.
    """

    name: str
    memory: int
    devices: Callable[[int], Sequence[jax.Device]]

    @classmethod
    def of(cls, name: str, mesh: MeshSpec) -> "Chip":
        """A chip by its name, one of `CHIPS`; ``here``: this machine's own devices, as many as the mesh takes.

        CPU devices share the machine's memory equally.

        Raises:
            ValueError: an unknown chip (the nearest is named), or fewer devices here than the mesh takes.
        """
        if name not in CHIPS:
            raise ValueError(f"unknown chip {name!r}; {nearest(name, CHIPS)}")
        if name != HERE:
            return cls(name, target_memory(name), lambda count: _absent(name, count))
        _, devices = resolve_mesh(str(mesh))
        stats = devices[0].memory_stats() or {}
        memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
        return cls(devices[0].device_kind, memory, lambda count: devices[:count])


def _absent(name: str, count: int) -> list[jax.Device]:
    try:
        return target_devices(name, count)
    except RuntimeError as error:  # what JAX raises where the plugin of a platform is missing
        extra = "tpu" if name in TPUS else "cuda12"
        reason = str(error).splitlines()[0]
        raise ValueError(f"there is no compiler for {name} here, install the {extra} extra: {reason}") from None


class StepSizes:
    """Bytes per device of single steps and of what a model keeps, over some devices. A step is compiled once.

    Attributes:
        submesh: the devices.
        compiled: by step and shape, what was compiled so far; infinite where the compiler says that it cannot fit.
    """

    def __init__(
        self, model: PlannedModel, devices: Sequence[jax.Device], block_size: int = 16, attention: str = "auto"
    ):
        """
        Args:
            devices: one for each slice of the language model.
            block_size, attention: see `EngineConfig`.

        Raises:
            ValueError: the model's heads cannot be split over so many devices.
        """
        self.model, self.block_size, self.attention = model, block_size, attention
        self.compiled: dict[tuple[Any, ...], float] = {}
        self.submesh = Submesh.of(list(devices), tensor=len(devices))
        self._parts: dict[str, Parts] = {}
        check_tensor_widths([InstanceMesh("planned", "EPD", self.submesh)], model.config)

    @property
    def tensor(self) -> int:
        """Devices that share the language model."""
        return self.submesh.width

    def weights(self, roles: str) -> int:
        """Of an instance with these roles: each part once."""
        parts: Parts = {}
        for role in roles:
            parts |= self._parts_of(role)
        return sum(_shard_bytes(leaf) for _, leaves in parts.values() for leaf in leaves)

    def encode(self, units: int, size: int) -> float:
        """Temporaries and output of an encode step over `units` units per device, padded to `size`."""
        return self._step("E", ("encode", units, size), dataclasses.replace(_ONE, units=(units,), unit_sizes=(size,)))

    def prefill(self, rows: int, tokens: int, pages: int) -> float:
        """Temporaries and output of a prefill of `rows` chunks that see `pages` KV blocks each."""
        shapes = dataclasses.replace(_ONE, prefill=((rows, tokens),), prefill_pages=(pages,))
        return self._step("P", ("prefill", rows, tokens, pages), shapes)

    def decode(self, rows: int, pages: int) -> float:
        """Temporaries and output of a decode step over `rows` sequences that see `pages` KV blocks each."""
        shapes = dataclasses.replace(_ONE, decode_rows=(rows,), decode_pages=(pages,))
        return self._step("D", ("decode", rows, pages), shapes)

    def units(self, count: int, size: int) -> int:
        """Inputs of `count` encode units padded to `size`, as they go up."""
        inputs = self.model.config.unit_inputs(size).values()
        return count * sum(prod(dims) * np.dtype(dtype).itemsize for dims, dtype in inputs)

    def encoded(self, count: int, size: int) -> int:
        """MM tokens of `count` encode units."""
        return self.mm_tokens(count * self.model.config.unit_tokens(size))

    def mm_tokens(self, count: int) -> int:
        """That many MM tokens; every device of an instance has them all."""
        return count * self.model.config.mm_width * self.model.dtype.itemsize

    def slots(self, count: int, length: int) -> int:
        """What is kept of `count` sequences of up to `length` tokens, KV apart."""
        return sum(prod(dims) * np.dtype(dtype).itemsize for dims, dtype in Slots.shapes(count, length).values())

    @property
    def kv_block(self) -> int:
        """A KV block, all layers together."""
        return block_bytes(self._instance("D", _ONE))

    def _parts_of(self, role: str) -> Parts:
        if role not in self._parts:
            self._parts[role] = self._workshop(_ONE).shapes(InstanceMesh(role, role, self.submesh))
        return self._parts[role]

    def _workshop(self, shapes: Buckets) -> Workshop:
        model, block = self.model, self.block_size
        config = EngineConfig("planned", block_size=block, max_chunk=block, attention=self.attention, buckets=shapes)
        return Workshop(config, model.family, model.config, scheduling_for(config, model.config), model.dtype)

    def _instance(self, role: str, shapes: Buckets) -> Any:
        place = InstanceMesh(role, role, self.submesh)
        return self._workshop(shapes).instance(place, PROBE_BLOCKS, self._parts_of(role))

    def _step(self, role: str, key: tuple[Any, ...], shapes: Buckets) -> float:
        if key not in self.compiled:
            began = time.monotonic()
            try:
                size: float = next(iter(largest_steps(self._instance(role, shapes)).values()))
            except jax.errors.JaxRuntimeError as error:  # TPUs' compiler refuses what their memory does not hold
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                size = inf
            self.compiled[key] = size
            log.info("%s: %.2f GiB, compiled in %.1f s", key, size / GIB, time.monotonic() - began)
        return self.compiled[key]


_ONE = Buckets(units=(1,), prefill=((1, 1),), prefill_pages=(1,), decode_rows=(1,), decode_pages=(1,), move_blocks=(1,))


def _shard_bytes(leaf: Any) -> int:
    return prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class InstanceMemory:
    """Bytes per device of the instances of one kind.

    Attributes:
        roles: that they perform.
        tensor: devices that share a language model.
        devices: of all of them in the mesh.
        budget: of a device's memory, what may be taken.
        weights: of the parts that the roles need.
        mm_pool: of MM tokens of prompts to prefill.
        slots: what is kept of sequences beside their KV.
        staged: encode results that may wait to be moved, and the inputs of steps given to the device ahead of time.
        steps: of temporaries and output of the largest step of each stage.
        kv_block: of a KV block. kv_blocks: in the pool, as many as there is a use for. block_size: tokens of a block.
    """

    roles: str
    tensor: int
    devices: int
    budget: int
    weights: int
    mm_pool: int
    slots: int
    staged: int
    steps: dict[str, int]
    kv_block: int
    kv_blocks: int
    block_size: int

    @property
    def working(self) -> int:
        """The largest step: only one runs at a time."""
        return max(self.steps.values())

    @property
    def kept(self) -> int:
        """All but the KV pool."""
        return self.weights + self.mm_pool + self.slots + self.staged + self.working

    @property
    def kv_pool(self) -> int:
        """The blocks, and the one that takes padding."""
        return self.kv_block * (self.kv_blocks + 1) if set(self.roles) & set("PD") else 0

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values the pool holds."""
        return self.kv_blocks * self.block_size

    @property
    def peak(self) -> int:
        """All that is taken while the largest step runs."""
        return self.kept + self.kv_pool

    @property
    def left(self) -> int:
        return self.budget - self.peak

    @property
    def kv_share(self) -> float:
        """Of what weights leave, the largest part that a KV pool could have; 0 where there is none."""
        if not set(self.roles) & set("PD"):
            return 0.0
        return (self.budget - self.kept) // self.kv_block * self.kv_block / (self.budget - self.weights)


def instance_memory(sizes: StepSizes, group: Group, config: EngineConfig, budget: int) -> InstanceMemory:
    """What the instances of a group take.

    Args:
        sizes: over as many devices as an instance has slices.
        config: limits of the engine.
        budget: bytes of a device that may be taken.

    Raises:
        ValueError: a device does not hold it; the message says how much is missing and which flags help.
    """
    scheduling = scheduling_for(config, sizes.model.config)
    buckets, roles = scheduling.buckets, group.roles
    spec = instance_spec(sizes, roles, config, scheduling)
    steps = largest(sizes, roles, buckets)
    if inf in steps.values():
        stage = next(stage for stage, size in steps.items() if size == inf)
        raise ValueError(f"the compiler says that a device does not hold the largest {stage}; {_HELP[stage]}")
    pages = -(-scheduling.max_model_len // scheduling.block_size)
    staged = 0
    if "E" in roles:
        rows, size = largest_units(buckets)[0]
        staged = staging(sizes, rows, size, spec.staging)
    made = InstanceMemory(
        roles,
        sizes.tensor,
        group.devices,
        budget,
        weights=sizes.weights(roles),
        mm_pool=sizes.mm_tokens((spec.mm_blocks + 1) * scheduling.mm_block_size) * ("P" in roles),
        slots=sizes.slots(spec.slots, pages * scheduling.block_size) if spec.slots else 0,
        staged=staged,
        steps={stage: int(size) for stage, size in steps.items()},
        kv_block=sizes.kv_block,
        kv_blocks=0,
        block_size=scheduling.block_size,
    )
    if not spec.slots:
        if made.left < 0:
            raise ValueError(
                f"weights and steps are {-made.left / GIB:.1f} GiB more than a device may use; {_HELP['encode']}"
            )
        return made
    least, most = pages, pages * spec.slots
    rest = made.kept - made.weights + made.kv_block  # the one that takes padding
    blocks = fit(budget - made.weights, rest, made.kv_block, least=least, most=most, wanted=config.kv_blocks)
    return dataclasses.replace(made, kv_blocks=blocks)


_HELP = {
    "encode": "lower --max-units, or raise --memory-share",
    "prefill": "lower --max-chunk or --max-model-len, or give the instance a larger tensor width",
    "decode": "lower --max-seqs or --max-model-len, or give the instance a larger tensor width",
}


def instance_spec(sizes: StepSizes, roles: str, config: EngineConfig, scheduling: SchedulerConfig) -> InstanceSpec:
    """What the scheduler would know of an instance, its KV blocks apart."""
    model = sizes.model
    workshop = Workshop(config, model.family, model.config, scheduling, model.dtype)
    return workshop.spec(InstanceMesh(roles, roles, sizes.submesh), kv_blocks=1)


def staging(sizes: StepSizes, units: int, size: int, results: int = InstanceSpec.staging) -> int:
    """Bytes an encoder holds beside the step that runs; see `staged_bytes`."""
    return staged_bytes(sizes.model.config, sizes.model.dtype, units, size, results)


def largest(sizes: StepSizes, roles: str, buckets: Buckets) -> dict[str, float]:
    """Bytes of the largest step of each stage that roles perform."""
    steps: dict[str, float] = {}
    if "E" in roles:
        steps["encode"] = max(sizes.encode(rows, size) for rows, size in largest_units(buckets))
    if "P" in roles:
        longest = {rows: max(t for r, t in buckets.prefill if r == rows) for rows, _ in buckets.prefill}
        pages = buckets.prefill_pages[-1]
        steps["prefill"] = max(sizes.prefill(rows, tokens, pages) for rows, tokens in longest.items())
    if "D" in roles:
        steps["decode"] = sizes.decode(buckets.decode_rows[-1], buckets.decode_pages[-1])
    return steps
