"""Building a deployment: devices, parameters, pool sizes, instances and their compiled steps."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.mesh.devices import InstanceMesh, on_devices, resolve_mesh
from epdjax.mesh.places import Place, places_of
from epdjax.mesh.spec import MeshSpec
from epdjax.models.processing.base import Processor
from epdjax.models.processing.templates import FILE as TEMPLATE_FILE
from epdjax.models.processing.templates import read_template
from epdjax.models.registry import Family, config_of, dtype_of, family_of
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import Buckets, default_buckets
from epdjax.serving.compiles import Compiled, compile_counter
from epdjax.serving.config import EngineConfig
from epdjax.serving.instance import Instance
from epdjax.serving.programs import Programs, Progress, compile_all, jobs_of
from epdjax.serving.token_decoder import TokenDecoder
from epdjax.serving.workshop import Workshop

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Deployment:
    """Everything that serves: the instances, and what was decided for them.

    Attributes:
        spec: the mesh spec at the start. devices: those it was laid out on, in order.
        workshop: where its instances are made.
        processor: the model's media and text processing. decoder: of its tokenizer.
        instances: by name. places: where they are, in the same order.
        programs: every compiled program, of instances that there were too.
        started: what was compiled for the start. ready: the process's count when all was done.
    """

    spec: MeshSpec
    devices: list[jax.Device]
    workshop: Workshop
    processor: Processor
    decoder: TokenDecoder
    instances: dict[str, Instance]
    places: list[Place]
    programs: Programs
    started: Compiled
    ready: Compiled

    @property
    def family(self) -> Family:
        return self.workshop.family

    @property
    def model(self) -> Any:
        """The model's config."""
        return self.workshop.model

    @property
    def scheduling(self) -> SchedulerConfig:
        """Limits and shapes, as the scheduler takes them."""
        return self.workshop.scheduling

    @property
    def compiles_after_ready(self) -> int:
        """Programs that this process has compiled since, other than to start another deployment or for a role switch:
        none, or there is a shape that was not foreseen (or other code in the process)."""
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
    # Before anything is loaded or compiled: what cannot be read should not cost minutes.
    processor = _processor(config, family, model)
    decoder = TokenDecoder(processor.tokenizer.backend_tokenizer)
    spec, devices = resolve_mesh(config.mesh)
    places = places_of(spec, irp=config.irp)
    meshes = [on_devices(place, devices) for place in places]
    check_tensor_widths(meshes, model)
    dtype = jnp.dtype(_dtype(config, folder, devices[0].platform))
    workshop = Workshop(config, family, model, scheduling_for(config, model), dtype)
    parts = workshop.load(meshes)
    instances = {}
    for mesh in meshes:
        instance = workshop.instance(mesh, workshop.kv_blocks(mesh), parts[mesh.name])
        instance.attention.tell(mesh.name)
        instances[mesh.name] = instance
    jobs = [job for i in instances.values() for job in jobs_of(i, instances.values())]
    before = compile_counter().count
    programs: Programs = {}
    compile_all(jobs, programs, progress)
    started = compile_counter().count - before
    for i in instances.values():
        i.make_pools()
    ready = compile_counter().ready()
    return Deployment(spec, devices, workshop, processor, decoder, instances, places, programs, started, ready)


def _processor(config: EngineConfig, family: Family, model: Any) -> Processor:
    """The processor of a checkpoint, tried out."""
    folder = Path(config.model)
    processor = family.processor(folder, model)
    if config.chat_template is not None:
        try:
            processor.use_template(read_template(config.chat_template))
        except ValueError as error:
            raise ValueError(f"chat_template {str(config.chat_template)!r}: {error}") from None
    elif processor.chat_template is None:
        log.warning(
            "%s has no chat template: messages are refused, prompts are not; put its template into a file %s there, or "
            "name a file (chat_template)",
            folder,
            TEMPLATE_FILE,
        )
    processor.try_out()
    return processor


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


def _use_compile_cache(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a warm start compiles nothing at all
