"""Taking a profile: the compiled steps of instances of each kind, timed on the devices at hand with random weights."""

import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from epdjax.planning.costs.live import LiveTimes, live_times
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
    Call,
    Timed,
    dispatch_s,
    encode_call,
    kv_moves,
    language_call,
    mm_moves,
    timed,
    waking_s,
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
    repeats: int = 5,
    least_s: float = 10.0,
    command: str = "",
    progress: Progress | None = None,
) -> Profile:
    """Time every step of every kind of instance of a deployment, over all its buckets.

    Weights are random, since what a step costs does not depend on them. Only the first instance of each kind is made.

    Args:
        family, model: a family and a config of it. name: what the profile calls the model.
        config: of the engine: mesh, shapes and limits.
        dtype: of weights and pools.
        checkpoint: a folder whose processor is timed on pictures too, and which a live engine serves, to see what its
            loop takes.
        repeats: timed calls of each step, after one that is not. least_s: that they are timed for, more often then.
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
    live = live_times(config, checkpoint, dtype.name, max(repeats, 10), least_s) if checkpoint else None
    workshop = Workshop(config, family, model, scheduling_for(config, model), dtype)
    with compile_counter().expected():  # of the weights
        instances = _make(workshop, _firsts(places, _kind_of))
    compile_all([job for i in instances for job in jobs_of(i, instances)], {}, progress)
    for instance in instances:
        instance.make_pools()
    kinds, chip = _time(instances, repeats, least_s), _chip(devices)
    overhead = _overhead(instances, repeats, live)
    if live is not None:
        overhead = dataclasses.replace(overhead, step=_step_overhead_s(live, kinds, chip.cores))
    host = measure_preprocessing(family, model, checkpoint, config.preprocess_threads) if checkpoint else None
    if host is not None and live is not None:
        prefill_s = min(point.seconds for kind in kinds for point in kind.prefill)
        host = dataclasses.replace(host, request_s=max(0.0, live.answer_s - prefill_s - overhead.loop))
    scheduling, buckets = workshop.scheduling, workshop.scheduling.buckets
    return Profile(
        taken=Taken(
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            f"{platform.node()}, {platform.machine()}, {platform.system()}",
            command,
            metadata.version("epdjax"),
            jax.__version__,
        ),
        chip=chip,
        model=ModelSeen(name, family.model_type, digest(model)),
        settings=Settings(
            mesh=str(spec),
            irp=config.irp,
            dtype=dtype.name,
            block_size=scheduling.block_size,
            mm_block_size=scheduling.mm_block_size,
            max_model_len=scheduling.max_model_len,
            unit_tokens=tuple(model.unit_tokens(size) for size in buckets.unit_sizes),
            repeats=repeats,
        ),
        buckets=buckets,
        kinds=kinds,
        overhead=overhead,
        preprocessing=host,
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


def _chip(devices: Sequence[jax.Device]) -> ChipSeen:
    platform = devices[0].platform
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ChipSeen(platform, devices[0].device_kind, len(devices), cores if platform == "cpu" else 0)


def _time(instances: Sequence[Instance], repeats: int, least_s: float) -> tuple[Kind, ...]:
    """All steps of instances, and the moves to them."""
    steps = [(instance, *step) for instance in instances for step in _steps(instance)]
    runs = [2 if stage == "decode" else 1 for _, stage, _, _ in steps]  # decode steps come in rows
    times = timed([call for *_, call in steps], repeats, runs=runs, least_s=least_s)
    kinds = []
    for instance in instances:
        points: dict[str, list[Any]] = {}
        busy: dict[str, list[Timed]] = {}
        for (of, stage, make, _), time in zip(steps, times):
            if of is instance:
                points.setdefault(stage, []).append(make(seconds=time.seconds))
                busy.setdefault(stage, []).append(time)
        kinds.append(
            Kind(
                *_kind(instance),
                attention={role: choice.kernel for role, choice in instance.attention.choices.items()},
                cores={stage: _cores(some) for stage, some in busy.items()},
                kv_moves=kv_moves(instance, instances, repeats),
                mm_moves=mm_moves(instance, instances, repeats),
                encode=tuple(points.get("encode", ())),
                prefill=tuple(points.get("prefill", ())),
                decode=tuple(points.get("decode", ())),
            )
        )
    return tuple(kinds)


def _steps(instance: Instance) -> Iterator[tuple[str, Callable[..., Any], Call]]:
    """(stage, what makes its point of seconds, call) of every step at its shortest and its longest context, and of
    decode steps with a single sequence too."""
    block = instance.block_size
    for kind, shape in sorted(key for key in instance.programs if key[0] in ("encode", "prefill", "decode")):
        if kind == "encode":
            rows, size = shape
            yield kind, partial(EncodePoint, rows // instance.submesh.width, size), encode_call(instance, rows, size)
            continue
        rows, pages = shape[0], shape[-1]
        tokens = min(shape[1], pages * block) if kind == "prefill" else 1
        longest = pages * block - tokens
        if kind == "prefill":
            for start in sorted({0, longest}):
                pairs = rows * tokens * (2 * start + tokens + 1) / 2
                call = language_call(instance, (kind, shape), start, tokens)
                yield kind, partial(PrefillPoint, rows, shape[1], pages, pairs), call
        else:
            for used, start in sorted({(1, 0), (rows, 0), (rows, longest)}):
                call = language_call(instance, (kind, shape), start, tokens, used)
                yield kind, partial(DecodePoint, rows, pages, used, used * (start + 1)), call


def _cores(times: Sequence[Timed]) -> float:
    """That steps keep busy, on average over the time they take."""
    return sum(time.seconds * time.cores for time in times) / sum(time.seconds for time in times)


def _overhead(instances: Sequence[Instance], repeats: int, live: LiveTimes | None) -> Overhead:
    """What the host adds; its loop alone where there is no live engine to be seen at work."""

    def least(kind: str, measure: Callable[[Instance, Any, int], float]) -> float:
        able = [(i, key) for i in instances for key in i.programs if key[0] == kind]
        return max(0.0, measure(*min(able, key=lambda pair: pair[1][1]), max(repeats, 10)))

    if live is not None:
        loop_s = live.loop_s
    else:
        scheduler = measure_scheduler(tuple(i.roles for i in instances), requests=60, running=16, tokens=16)
        loop_s = scheduler.step_s + least("prefill", dispatch_s)
    return Overhead(loop_s, least("prefill", waking_s))


def _step_overhead_s(live: LiveTimes, kinds: Sequence[Kind], cores: int) -> float:
    """What a decode step takes longer in the live engine. Its pace is that of the steps, one behind the other, and of
    what the loop beside them takes from the cores that both share."""
    steps = [(point.seconds, kind.cores["decode"]) for kind in kinds for point in kind.decode if point.running == 1]
    if not steps:
        return 0.0
    alone_s, busy = min(steps)
    slower = max(1.0, (busy + 1) / cores) if cores else 1.0
    return max(0.0, live.pace_s - live.loop_s * (slower - 1) - alone_s)
