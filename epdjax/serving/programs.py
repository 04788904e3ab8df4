"""Compiling: every step of every instance for every declared bucket, ahead of time and in parallel.

Nothing else is ever compiled: an instance calls these compiled programs, which refuse any other shape.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.serving import steps
from epdjax.serving.compiles import compile_counter
from epdjax.serving.instance import Instance
from epdjax.serving.moving import MOST_PARTS
from epdjax.serving.rows import FLOAT_FIELDS, ROW_FIELDS
from epdjax.serving.slots import Slots, seed_slot

# XLA:GPU merges dots that share an input by concatenating their weights, anew in every step: for a decode step that
# is as many bytes again as it has to read. With a threshold of zero it leaves them alone.
GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_dot_merger_threshold_mb": "0"}
# Its Triton emitter finds no tiles for the 4 x 1025 rows of four InternViT units; cuBLAS takes any shape, and an encode
# step is made of large products, which it is good at.
GPU_ENCODE_OPTIONS: dict[str, str | bool] = GPU_OPTIONS | {"xla_gpu_enable_triton_gemm": False}

Programs = dict[tuple, Any]
"""Compiled programs (``jax.stages.Compiled``) by what they depend on, see `Job.shelf`."""
Progress = Callable[[int, int, str], None]
"""Called with (programs done, programs in all, the one just done)."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile: where it belongs, and how to lower it."""

    instance: Instance
    key: tuple[str, Any]
    lower: Callable[[], Any]

    def compile(self) -> Any:
        """The program, as ``jax.stages.Compiled``."""
        options = None
        if self.instance.submesh.devices[0].platform in ("gpu", "cuda"):
            options = GPU_ENCODE_OPTIONS if self.key[0] == "encode" else GPU_OPTIONS
        with compile_counter().expected():
            return self.lower().compile(compiler_options=options)

    @property
    def shelf(self) -> tuple:
        """What the program depends on: instances that there were on the same devices have left those that are alike."""
        i, sizes = self.instance, self.instance.spec
        mm_blocks = sizes.mm_blocks if self.key[0] in ("land_mm", "prefill", "mm_pool") else 0
        mesh = i.submesh.mesh
        return (*mesh.devices.flat, *mesh.devices.shape, sizes.kv_blocks, sizes.slots, mm_blocks, *self.key)

    @property
    def label(self) -> str:
        return f"{self.instance.name} {self.key[0]} {self.key[1] or ''}".rstrip()


def compile_all(
    jobs: Sequence[Job], programs: Programs, progress: Progress | None = None, threads: int | None = None
) -> None:
    """Compile `jobs` in parallel, those that are not in `programs` yet, and give each instance its own.

    Args:
        threads: that compile; None: as many as the machine can use.
    """
    for job in jobs:
        if job.shelf in programs:
            job.instance.programs[job.key] = programs[job.shelf]
    new = [job for job in jobs if job.shelf not in programs]
    # Tracing holds the GIL and compiling does not: a few more threads than cores keep the compiler busy.
    with concurrent.futures.ThreadPoolExecutor(max_workers=threads or (os.cpu_count() or 1) + 2) as pool:
        futures = {pool.submit(job.compile): job for job in new}
        for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            job = futures[future]
            programs[job.shelf] = job.instance.programs[job.key] = future.result()
            if progress:
                progress(count, len(new), job.label)


def jobs_of(instance: Instance, instances: Iterable[Instance]) -> list[Job]:
    """All programs an instance may ever run beside `instances`, itself among them."""
    build = _Builder(instance)
    jobs = []
    if instance.performs("E"):
        jobs += [build.encode(rows * instance.submesh.width, size) for size, rows in _unit_shapes(instance)]
    if instance.performs("P"):
        # Also one that encodes for itself: what others have encoded for it may land when it has just begun to.
        senders = [i for i in instances if i.performs("E")]
        for pieces in sorted({sender.submesh.width for sender in senders}):
            shapes = {(rows, instance.model.unit_tokens(size)) for size, rows in _unit_shapes(instance)}
            jobs += [build.land_mm(pieces, rows, tokens) for rows, tokens in sorted(shapes)]
        for rows, tokens in instance.buckets.prefill:
            # A row longer than the next smaller bucket sees at least that bucket's pages.
            shorter = max((t for r, t in instance.buckets.prefill if r == rows and t < tokens), default=0)
            least = -(-(shorter + 1) // instance.block_size)
            pages = [p for p in instance.buckets.prefill_pages if p >= least]
            jobs += [build.prefill(rows, tokens, p) for p in pages]
    if instance.performs("D"):
        jobs += [build.decode(r, p) for r in instance.buckets.decode_rows for p in instance.buckets.decode_pages]
    # KV moves to instances that decode: from those that only prefill, and from others that decode and need the room.
    others = [other for other in instances if other is not instance]
    if instance.performs("P") or instance.performs("D"):
        splits = {instance.tensor == other.tensor for other in others if other.performs("D")}
        jobs += [build.gather_kv(n, split) for n in instance.buckets.move_blocks for split in sorted(splits)]
    if instance.performs("D"):
        widths = {other.tensor for other in others if other.performs("P") or other.performs("D")}
        splits = {instance.tensor in (1, width) for width in widths}
        jobs += [build.land_kv(n, split) for n in instance.buckets.move_blocks for split in sorted(splits)]
    if instance.performs("P") or instance.performs("D"):
        jobs += [build.kv_pool(), build.mm_pool(), build.seed_slot()]
    return jobs


def _unit_shapes(instance: Instance) -> list[tuple[int, int]]:
    """(unit size, units per device) of every encode step."""
    buckets = instance.buckets
    return [(size, rows) for size in buckets.unit_sizes for rows in buckets.unit_rows(size)]


class _Builder:
    """Makes the jobs of one instance: shapes, shardings and donation of each step, in one place."""

    def __init__(self, instance: Instance):
        self.i = instance
        text = instance.model.text
        self.kv = (self.shape(instance.kv_shape, instance.dtype, instance.kv_sharding),) * text.num_layers
        shapes = Slots.shapes(instance.spec.slots, instance.longest)
        slots: dict[str, Any] = {name: self.shape(dims, dtype) for name, (dims, dtype) in shapes.items()}
        self.slots = Slots(**slots)
        self.mm = self.shape(instance.mm_shape, instance.dtype)
        self.pool_shardings = (instance.kv_sharding,) * text.num_layers

    def shape(self, dims: Sequence[int], dtype: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(dims), dtype, sharding=sharding or self.i.replicated)

    def ints(self, *dims: int) -> jax.ShapeDtypeStruct:
        return self.shape(dims, jnp.int32)

    def leaves(self, part: str) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(self.shape(leaf.shape, leaf.dtype, leaf.sharding) for leaf in self.i.parts[part][1])

    def job(self, key: tuple[str, Any], step: Callable, args: tuple, *, donate: tuple[int, ...] = (), out: Any) -> Job:
        def lower() -> Any:
            return jax.jit(step, donate_argnums=donate, out_shardings=out).lower(*args)

        return Job(self.i, key, lower)

    def packed(self, rows: int, pages: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return self.ints(rows, ROW_FIELDS + pages), self.shape((rows, FLOAT_FIELDS), jnp.float32)

    def encode(self, units: int, size: int) -> Job:
        inputs = {
            name: self.shape((units, *dims), dtype, self.i.unit_sharding)
            for name, (dims, dtype) in self.i.model.unit_inputs(size).items()
        }
        step = _bound(steps.encode, self.i.parts["encoder"][0], self.i.attention.units)
        return self.job(("encode", (units, size)), step, (self.leaves("encoder"), inputs), out=self.i.unit_sharding)

    def land_mm(self, pieces: int, units: int, tokens: int) -> Job:
        arrived = (self.shape((units, tokens, self.i.model.mm_width), self.i.dtype),) * pieces
        args = (self.mm, arrived, self.ints(pieces * units, tokens))
        return self.job(("land_mm", (pieces, units, tokens)), steps.land_mm, args, donate=(0,), out=self.i.replicated)

    def stepping(self, key: tuple[str, Any], step: Callable, attend: Any, args: tuple) -> Job:
        step = _bound(step, self.i.parts["language_model"][0], attend)
        args = (self.leaves("language_model"), self.kv, self.slots, *args)
        out = (self.i.replicated, self.pool_shardings, self.i.replicated)
        return self.job(key, step, args, donate=(1, 2), out=out)

    def prefill(self, rows: int, tokens: int, pages: int) -> Job:
        arrays = steps.prompt_arrays(self.i.model, rows, tokens).items()
        prompt = {name: self.shape(dims, dtype) for name, (dims, dtype) in arrays}
        args = (self.mm, prompt, *self.packed(rows, pages))
        return self.stepping(("prefill", (rows, tokens, pages)), steps.prefill, self.i.attention.pages["P"], args)

    def decode(self, rows: int, pages: int) -> Job:
        return self.stepping(
            ("decode", (rows, pages)), steps.decode, self.i.attention.pages["D"], self.packed(rows, pages)
        )

    def moving(self, split: bool) -> Any:
        """Heads stay split over a move between equal tensor widths; between others every device gets them all, because
        only shards that exist as they are can be copied from device to device (`mesh.transfer`)."""
        return self.i.kv_sharding if split else self.i.replicated

    def gather_kv(self, blocks: int, split: bool) -> Job:
        args = (self.kv, self.ints(blocks))
        out = (self.moving(split),) * len(self.kv)
        return self.job(("gather_kv", (blocks, split)), steps.gather_kv, args, out=out)

    def land_kv(self, blocks: int, split: bool) -> Job:
        moved = tuple(self.shape((blocks, *p.shape[1:]), p.dtype, self.moving(split)) for p in self.kv)
        args = (self.kv, self.slots, moved, self.ints(blocks), self.ints(3, MOST_PARTS))
        out = (self.pool_shardings, self.i.replicated)
        return self.job(("land_kv", (blocks, split)), steps.land_kv, args, donate=(0, 1), out=out)

    def seed_slot(self) -> Job:
        row = {field.name: getattr(self.slots, field.name) for field in dataclasses.fields(Slots)}
        row = {name: self.shape(array.shape[1:], array.dtype) for name, array in row.items()}
        args = (self.slots, self.ints(1), row)
        return self.job(("seed_slot", None), seed_slot, args, donate=(0,), out=self.i.replicated)

    def kv_pool(self) -> Job:
        out = (self.pool_shardings, self.i.replicated)
        return self.job(("kv_pool", None), lambda: _zeros((self.kv, self.slots)), (), out=out)

    def mm_pool(self) -> Job:
        return self.job(("mm_pool", None), lambda: _zeros(self.mm), (), out=self.i.replicated)


@functools.lru_cache(maxsize=64)  # parts of models
def _bound(step: Callable, split: steps.Split, attend: Any) -> Callable:
    """A step of a model's part. The same for instances that are alike, since JAX traces a function it knows only once
    for the same shapes, wherever it is compiled for."""
    return functools.partial(step, split, attend)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), shapes)
