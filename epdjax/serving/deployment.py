"""Building a deployment: devices, parameters, pool sizes, instances and their compiled steps."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.mesh.devices import InstanceMesh, divide, resolve_mesh
from epdjax.mesh.spec import MeshSpec
from epdjax.models.checkpoint import load_part
from epdjax.models.registry import Family, abstract_part, config_of, dtype_of, family_of
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import Buckets, default_buckets
from epdjax.serving.compiles import Compiled, compile_counter
from epdjax.serving.config import EngineConfig
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.memory import choose_kv_blocks
from epdjax.serving.programs import Job, Progress, compile_all, jobs_of
from epdjax.serving.steps import Split

log = logging.getLogger(__name__)

PARTS_OF_ROLE = {"E": "encoder", "P": "language_model", "D": "language_model"}


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Everything that serves: the instances, and what was decided for them.

    Attributes:
        spec: the mesh spec in force.
        model: the model's config. processor: its media and text processing.
        instances: by name.
        scheduling: limits and shapes, as the scheduler takes them.
        programs: every compiled program, for inspection.
        started: what was compiled for them. ready: the process's count when all was done.
    """

    spec: MeshSpec
    family: Family
    model: Any
    processor: Any
    instances: dict[str, Instance]
    scheduling: SchedulerConfig
    programs: dict[Job, Any]
    started: Compiled
    ready: Compiled

    @property
    def compiles_after_ready(self) -> int:
        """Programs that this process has compiled since, other than to start another deployment: none, or there is a
        shape that start-up did not foresee (or other code in the process)."""
        return (compile_counter().count - self.ready).late


def build(config: EngineConfig, progress: Progress | None = None) -> Deployment:
    """Load a checkpoint onto its submeshes and compile every step.

    Raises:
        MeshSpecError: the mesh spec is malformed or wants more devices than there are.
        ValueError: the model is not supported, its checkpoint does not fit, or memory is too small; the message says
            what to change.
    """
    with compile_counter().expected():
        return _build(config, progress)


def _build(config: EngineConfig, progress: Progress | None) -> Deployment:
    folder = Path(config.model)
    if not folder.is_dir():
        raise ValueError(f"model {str(config.model)!r} is not a folder; give the local folder of a checkpoint")
    if config.compile_cache is not None:
        _use_compile_cache(Path(config.compile_cache))
    family, model = family_of(folder), config_of(folder)
    spec, devices = resolve_mesh(config.mesh)
    places = divide(spec, devices, irp=config.irp)
    check_tensor_widths(places, model)
    dtype = jnp.dtype(_dtype(config, folder, devices[0].platform))
    scheduling = scheduling_for(config, model)
    parts = _load(folder, family, model, places, dtype)

    def instance(place: InstanceMesh, kv_blocks: int) -> Instance:
        return Instance(
            place,
            instance_spec(config, scheduling, place, kv_blocks),
            model,
            parts[place.name],
            scheduling.buckets,
            dtype=dtype,
            block_size=scheduling.block_size,
            mm_block_size=scheduling.mm_block_size,
            attention=config.attention,
        )

    instances = {}
    for place in places:
        kv_blocks = choose_kv_blocks(config, scheduling, functools.partial(instance, place))
        instances[place.name] = instance(place, kv_blocks)
        instances[place.name].attention.tell(place.name)
    jobs = [job for i in instances.values() for job in jobs_of(i, instances.values())]
    before = compile_counter().count
    programs = compile_all(jobs, progress)
    started = compile_counter().count - before
    for i in instances.values():
        if i.performs("P") or i.performs("D"):
            i.make_pools()
    processor = family.processor(folder, model)
    ready = compile_counter().ready()
    return Deployment(spec, family, model, processor, instances, scheduling, programs, started, ready)


def check_tensor_widths(places: list[InstanceMesh], model: Any) -> None:
    """Refuse tensor widths that the model's heads cannot be split over.

    Raises:
        ValueError: names the instance and the widths that work.
    """
    text = model.text
    for place in places:
        width = place.submesh.mesh.shape["tensor"]
        sizes = {"attention heads": text.num_heads, "KV heads": text.num_kv_heads, "MLP columns": text.mlp_size}
        for what, size in sizes.items():
            if size % width:
                works = [w for w in range(1, width) if all(s % w == 0 for s in sizes.values())]
                raise ValueError(
                    f"instance {place.name} is {width} devices wide, which do not divide the model's {size} {what}; "
                    f"tensor widths that work: {', '.join(map(str, works))}"
                )


def _dtype(config: EngineConfig, folder: Path, platform: str) -> Any:
    if config.dtype != "auto":
        return config.dtype
    # CPUs compute bfloat16 by converting to float32 and back: slower, and no memory is short there.
    return "float32" if platform == "cpu" else dtype_of(folder)


def scheduling_for(config: EngineConfig, model: Any) -> SchedulerConfig:
    """Limits and compiled shapes of a deployment of a model, given its config.

    Raises:
        ValueError: `max_model_len` is beyond the model's own.
    """
    longest = model.text.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ValueError(f"max_model_len {config.max_model_len} is beyond the model's own {longest}")
    max_model_len = config.max_model_len or min(longest, 8192)
    return SchedulerConfig(
        buckets=_buckets(config, model, max_model_len),
        block_size=config.block_size,
        mm_block_size=model.mm_block_size,
        max_model_len=max_model_len,
        max_requests=config.max_requests,
        max_queued_units=config.max_queued_units,
        max_media_bytes=config.max_media_bytes,
        order=config.order,
        assignment=config.assignment,
        decode_pace=config.decode_pace,
    )


def _buckets(config: EngineConfig, model: Any, max_model_len: int) -> Buckets:
    if isinstance(config.buckets, Buckets):
        return config.buckets
    full = default_buckets(
        max_model_len=max_model_len,
        block_size=config.block_size,
        max_chunk=config.max_chunk,
        max_seqs=config.max_seqs,
        max_units=config.max_units,
        unit_sizes=model.unit_sizes(max_model_len),
    )
    return full.trimmed() if config.buckets == "trimmed" else full


def instance_spec(
    config: EngineConfig, scheduling: SchedulerConfig, place: InstanceMesh, kv_blocks: int
) -> InstanceSpec:
    """What the scheduler knows of an instance: its roles and how much it holds."""
    holds_kv, prefills, encodes = set(place.roles) & {"P", "D"}, "P" in place.roles, "E" in place.roles
    tokens = scheduling.max_model_len // scheduling.mm_block_size  # MM blocks that a full context could be made of
    return InstanceSpec(
        place.name,
        place.roles,
        kv_blocks=kv_blocks if holds_kv else 0,
        mm_blocks=(config.mm_blocks or max(tokens, 16 * config.max_seqs)) if prefills else 0,
        slots=scheduling.buckets.decode_rows[-1] if holds_kv else 0,
        encode_width=place.submesh.width if encodes else 0,
        tensor=place.submesh.mesh.shape["tensor"],
    )


def _load(
    folder: Path, family: Family, model: Any, places: list[InstanceMesh], dtype: Any
) -> dict[str, dict[str, tuple[Split, tuple[jax.Array, ...]]]]:
    """Parameters of every instance: only the parts its roles need, each tensor read once for all instances."""
    loaded: dict[str, dict[str, tuple[Split, tuple[jax.Array, ...]]]] = {place.name: {} for place in places}
    for part in family.parts:
        owners = [place for place in places if any(PARTS_OF_ROLE[role] == part for role in place.roles)]
        states = load_part(folder, family, model, part, [place.submesh.sharding for place in owners], dtype)
        split, _ = Split.of(abstract_part(family, model, part, dtype))
        for place, state in zip(owners, states, strict=True):
            loaded[place.name][part] = (split, tuple(jax.tree.leaves(state)))
    return loaded


def _use_compile_cache(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a warm start compiles nothing at all
