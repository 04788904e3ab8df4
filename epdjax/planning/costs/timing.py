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
from epdjax.planning.costs.crowding import Step, crowding
from epdjax.planning.costs.host import HostCosts
from epdjax.planning.costs.live import LiveTimes
from epdjax.planning.costs.overheads import guessed_overhead, seen_overhead
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
    beyond_launch,
    encode_call,
    kv_moves,
    language_call,
    mm_moves,
    timed,
)
from epdjax.serving.compiles import compile_counter
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import check_tensor_widths, scheduling_for
from epdjax.serving.instance import Instance
from epdjax.serving.programs import Progress, compile_all, jobs_of
from epdjax.serving.steps import Split
from epdjax.serving.workshop import Workshop, parts_of

T = TypeVar("T")
CROWDED_ROUNDS = 2  # of steps by themselves and beside one another


class Profiler:
    """Instances of a deployment, the first of each kind, compiled and ready to be timed any number of times.

    Weights are random, since what a step costs does not depend on them.

    Args:
        family, model: a family and a config of it. name: what profiles call the model.
        config: of the engine: mesh, shapes and limits.
        dtype: of weights and pools.
        checkpoint: a folder whose processor is timed on pictures too.
        progress: of compiling.

    Raises:
        ValueError: the mesh spec is malformed or takes more devices than there are, the model's heads cannot be split
            so, memory is too small, or the checkpoint's processor cannot be loaded.
    """

    def __init__(
        self,
        family: Family,
        model: Any,
        config: EngineConfig,
        *,
        name: str,
        dtype: Any,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ):
        self._family, self._model, self._config = family, model, config
        self._name, self._dtype, self._checkpoint = name, jnp.dtype(dtype), checkpoint
        spec, self._devices = resolve_mesh(config.mesh)
        self._mesh = str(spec)
        places = [on_devices(place, self._devices) for place in places_of(spec, irp=config.irp)]
        check_tensor_widths(places, model)
        self._scheduling = scheduling_for(config, model)
        workshop = Workshop(config, family, model, self._scheduling, self._dtype)
        with compile_counter().expected():  # of the weights
            self._instances = _make(workshop, _firsts(places, _kind_of))
        compile_all([job for i in self._instances for job in jobs_of(i, self._instances)], {}, progress)
        for instance in self._instances:
            instance.make_pools()

    def take(
        self, live: LiveTimes | None = None, *, repeats: int = 5, least_s: float = 10.0, command: str = ""
    ) -> Profile:
        """Time everything once more.

        Args:
            live: of the deployment as it serves; None: what the host adds is estimated.
            repeats: timed calls of each step, after one that is not. least_s: that they are timed for, more often then.
            command: that took the profile, for the record.
        """
        scheduling, buckets = self._scheduling, self._scheduling.buckets
        chip = _chip(self._devices)
        kinds, typical = _time(self._instances, repeats, least_s)
        steps = Profile(
            taken=Taken(
                datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                f"{platform.node()}, {platform.machine()}, {platform.system()}",
                command,
                metadata.version("epdjax"),
                jax.__version__,
            ),
            chip=chip,
            model=ModelSeen(self._name, self._family.model_type, digest(self._model)),
            settings=Settings(
                mesh=self._mesh,
                irp=self._config.irp,
                dtype=self._dtype.name,
                block_size=scheduling.block_size,
                mm_block_size=scheduling.mm_block_size,
                max_model_len=scheduling.max_model_len,
                unit_tokens=tuple(self._model.unit_tokens(size) for size in buckets.unit_sizes),
                repeats=repeats,
            ),
            buckets=buckets,
            kinds=kinds,
            overhead=Overhead(),
            beside=crowding(typical, CROWDED_ROUNDS, least_s) if chip.cores else (),
        )
        overhead = seen_overhead(steps, live) if live is not None else guessed_overhead(self._instances, repeats)
        return dataclasses.replace(steps, overhead=overhead, preprocessing=self._host(live))

    def _host(self, live: LiveTimes | None) -> HostCosts | None:
        if self._checkpoint is None:
            return None
        workers = self._config.preprocess_threads
        host = measure_preprocessing(self._family, self._model, self._checkpoint, workers)
        return host if host is None or live is None else dataclasses.replace(host, request_s=live.request_s)


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


def _time(instances: Sequence[Instance], repeats: int, least_s: float) -> tuple[tuple[Kind, ...], dict[Step, Call]]:
    """All steps of instances, and the moves to them; and a step of each stage that takes neither long nor short."""
    steps = [(instance, *step) for instance in instances for step in _steps(instance)]
    runs = [3 if stage == "decode" else 1 for _, stage, _, _ in steps]  # decode steps come in rows
    times = timed([call for *_, call in steps], repeats, runs=runs, least_s=least_s)
    kinds, typical = [], {}
    for number, instance in enumerate(instances):
        points: dict[str, list[Any]] = {}
        busy: dict[str, list[Timed]] = {}
        for stage in dict.fromkeys(stage for of, stage, *_ in steps if of is instance):
            mine = [
                (make, call, time)
                for (of, of_stage, make, call), time in zip(steps, times)
                if (of, of_stage) == (instance, stage)
            ]
            busy[stage] = beyond_launch([time for *_, time in mine])
            points[stage] = [make(seconds=time.seconds) for (make, *_), time in zip(mine, busy[stage])]
            _, typical[number, stage], _ = sorted(mine, key=lambda step: step[2].seconds)[len(mine) // 2]
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
    return tuple(kinds), typical


def _steps(instance: Instance) -> Iterator[tuple[str, Callable[..., Any], Call]]:
    """(stage, what makes its point of seconds, call) of every step at its shortest and its longest context, and of
    decode steps with fewer sequences too."""
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
            fewer = [2**n for n in range(rows.bit_length()) if 2**n < rows]
            for used, start in [*((some, 0) for some in fewer), *sorted({(rows, 0), (rows, longest)})]:
                call = language_call(instance, (kind, shape), start, tokens, used)
                yield kind, partial(DecodePoint, rows, pages, used, used * (start + 1)), call


def _cores(times: Sequence[Timed]) -> float:
    """That steps keep busy, on average over the time they take."""
    return sum(time.seconds * time.cores for time in times) / sum(time.seconds for time in times)
