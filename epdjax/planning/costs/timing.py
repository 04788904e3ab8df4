"""Taking a profile: the compiled steps of instances of each kind, timed on the devices at hand with random weights."""

import contextlib
import datetime
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from epdjax.mesh.devices import InstanceMesh, on_devices, resolve_mesh
from epdjax.mesh.places import places_of
from epdjax.models.random_part import random_part
from epdjax.models.registry import Family, abstract_part
from epdjax.planning.benchmarks.overhead import measure_scheduler
from epdjax.planning.costs.engine_step import engine_step_s
from epdjax.planning.costs.preprocessing import measure_preprocessing
from epdjax.planning.costs.profile import (
    ChipSeen,
    DecodePoint,
    EncodePoint,
    Kind,
    ModelSeen,
    Overhead,
    PrefillPoint,
    Profile,
    Settings,
    Taken,
    digest,
)
from epdjax.planning.costs.stepping import (
    Pools,
    encode_call,
    encode_overhead,
    kv_moves,
    language_call,
    language_overhead,
    median_s,
    mm_moves,
)
from epdjax.serving.compiles import compile_counter
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import check_tensor_widths, scheduling_for
from epdjax.serving.instance import Instance
from epdjax.serving.programs import Progress, compile_all, jobs_of
from epdjax.serving.steps import Split
from epdjax.serving.workshop import Workshop, parts_of

T = TypeVar("T")


def take_profile(
    family: Family,
    model: Any,
    config: EngineConfig,
    *,
    name: str,
    dtype: Any,
    checkpoint: Path | None = None,
    shared: bool = False,
    repeats: int = 5,
    command: str = "",
    progress: Progress | None = None,
) -> Profile:
    """Time every step of every kind of instance of a deployment, over all its buckets.

    Weights are random, since what a step costs does not depend on them. Only the first instance of each kind is made,
    unless `shared`.

    Args:
        family, model: a family and a config of it. name: what the profile calls the model.
        config: of the engine: mesh, shapes and limits.
        dtype: of weights and pools.
        checkpoint: a folder whose processor is timed on pictures too, and which a live engine serves to find the
            shortest decode step.
        shared: keep all other instances busy while one is timed. For devices that share cores, as virtual CPU devices
            do; the profile holds for this mesh alone then.
        repeats: timed calls of each step, after one that is not.
        command: that took the profile, for the record.
        progress: of compiling.

    Raises:
        ValueError: the mesh spec is malformed or takes more devices than there are, the model's heads cannot be split
            so, memory is too small, or the checkpoint's processor cannot be loaded.
    """
    dtype = jnp.dtype(dtype)
    spec, devices = resolve_mesh(config.mesh)
    places = [on_devices(place, devices) for place in places_of(spec, irp=config.irp)]
    check_tensor_widths(places, model)
    least = engine_step_s(config, checkpoint, dtype.name, repeats) if checkpoint else 0.0
    workshop = Workshop(config, family, model, scheduling_for(config, model), dtype)
    with compile_counter().expected():  # of the weights
        instances = _make(workshop, places if shared else _firsts(places, _kind_of))
    compile_all([job for i in instances for job in jobs_of(i, instances)], {}, progress)
    for instance in instances:
        instance.make_pools()
    firsts = _firsts(instances, _kind)
    kinds = []
    for instance in firsts:
        with _busy([other for other in instances if other is not instance] if shared else []):
            kinds.append(_time(instance, instances, repeats))
    scheduling, buckets = workshop.scheduling, workshop.scheduling.buckets
    return Profile(
        taken=Taken(
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            f"{platform.node()}, {platform.machine()}, {platform.system()}",
            command,
            metadata.version("epdjax"),
            jax.__version__,
        ),
        chip=ChipSeen(devices[0].platform, devices[0].device_kind, len(devices)),
        model=ModelSeen(name, family.model_type, digest(model)),
        settings=Settings(
            mesh=str(spec),
            irp=config.irp,
            shared=shared,
            dtype=dtype.name,
            block_size=scheduling.block_size,
            mm_block_size=scheduling.mm_block_size,
            max_model_len=scheduling.max_model_len,
            unit_tokens=tuple(model.unit_tokens(size) for size in buckets.unit_sizes),
            repeats=repeats,
        ),
        buckets=buckets,
        kinds=tuple(kinds),
        overhead=_overhead(firsts, repeats, least),
        preprocessing=measure_preprocessing(family, model, checkpoint, config.preprocess_threads)
        if checkpoint
        else None,
    )


def _firsts(items: Sequence[T], key: Callable[[T], Any]) -> list[T]:
    """The first of each kind."""
    found: dict[Any, T] = {}
    for item in items:
        found.setdefault(key(item), item)
    return list(found.values())


def _kind_of(place: InstanceMesh) -> tuple[str, tuple[int, ...]]:
    return place.roles, place.submesh.mesh.devices.shape


def _kind(instance: Instance) -> tuple[str, int, int]:
    return instance.roles, instance.spec.tensor, instance.spec.encode_width


def _make(workshop: Workshop, places: Sequence[InstanceMesh]) -> list[Instance]:
    """Instances with random weights, in the order of `places`."""
    family, model, dtype = workshop.family, workshop.model, workshop.dtype
    instances = []
    for place in places:
        parts = {}
        for part in parts_of(place.roles):
            (state,) = random_part(family, model, part, [place.submesh.sharding], dtype)
            split, _ = Split.of(abstract_part(family, model, part, dtype))
            parts[part] = (split, tuple(jax.tree.leaves(state)))
        instances.append(workshop.instance(place, workshop.kv_blocks(place), parts))
    return instances


def _time(instance: Instance, instances: Sequence[Instance], repeats: int) -> Kind:
    """All steps of an instance, and the moves to it."""
    encode, prefill, decode = [], [], []
    block = instance.block_size
    for kind, shape in sorted(key for key in instance.programs if key[0] in ("encode", "prefill", "decode")):
        if kind == "encode":
            rows, size = shape
            seconds = median_s(encode_call(instance, rows, size), repeats)
            encode.append(EncodePoint(rows // instance.submesh.width, size, seconds))
            continue
        rows, pages = shape[0], shape[-1]
        tokens = min(shape[1], pages * block) if kind == "prefill" else 1
        for start in sorted({0, pages * block - tokens}):
            seconds = median_s(language_call(instance, (kind, shape), start, tokens), repeats)
            if kind == "prefill":
                pairs = rows * tokens * (2 * start + tokens + 1) / 2
                prefill.append(PrefillPoint(rows, shape[1], pages, pairs, seconds))
            else:
                decode.append(DecodePoint(rows, pages, rows * (start + 1), seconds))
    return Kind(
        *_kind(instance),
        attention={role: choice.kernel for role, choice in instance.attention.choices.items()},
        encode=tuple(encode),
        prefill=tuple(prefill),
        decode=tuple(decode),
        kv_moves=kv_moves(instance, instances, repeats),
        mm_moves=mm_moves(instance, instances, repeats),
    )


def _overhead(instances: Sequence[Instance], repeats: int, decode_least: float) -> Overhead:
    """What the host adds, on the smallest steps."""
    repeats = max(repeats, 10)
    scheduler = measure_scheduler(tuple(i.roles for i in instances), requests=60, running=16, tokens=16).step_s

    def least(kind: str, measure: Callable[[Instance, Any, int], float]) -> float:
        able = [(i, key) for i in instances for key in i.programs if key[0] == kind]
        return max(0.0, measure(*min(able, key=lambda pair: pair[1][1]), repeats))

    return Overhead(
        encode=least("encode", encode_overhead) + scheduler,
        prefill=least("prefill", language_overhead) + scheduler,
        decode=least("decode", language_overhead),
        move=scheduler,
        decode_least=decode_least,
    )


@contextlib.contextmanager
def _busy(instances: Sequence[Instance]) -> Iterator[None]:
    """Instances that run one of their steps again and again: one of middling size, of their last role, on pools apart
    from those that are timed."""
    stop = threading.Event()

    def run(call: Callable[[], Any]) -> None:
        while not stop.is_set():
            jax.block_until_ready(call())

    threads = [threading.Thread(target=run, args=(_some_step(i),), daemon=True) for i in instances]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _some_step(instance: Instance) -> Callable[[], Any]:
    kind = {"E": "encode", "P": "prefill", "D": "decode"}[instance.roles[-1]]
    shapes = sorted(key[1] for key in instance.programs if key[0] == kind)
    shape = shapes[len(shapes) // 2]
    if kind == "encode":
        return encode_call(instance, *shape)
    tokens = min(shape[1], shape[-1] * instance.block_size) if kind == "prefill" else 1
    return language_call(instance, (kind, shape), 0, tokens, Pools.fresh(instance))
