"""Kernels bound to the devices of an instance: each device attends with what it holds of units, heads and pools."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from epdjax.models.attention import AttentionKind, UnitAttend, blocked_attention
from epdjax.serving.attention.rules import REFERENCE
from epdjax.serving.paged import PagedRows, PagesAttend, attend_to_gathered

Reads = Callable[..., tuple[jax.Array, ...]]
"""What a kernel reads of the rows: takes `PagedRows` and `AttentionKind`."""
EVERYWHERE = PartitionSpec()
HEADS = PartitionSpec(None, None, "tensor")  # of queries, and of pools


def platform_of(device: jax.Device) -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform


def capability(device: jax.Device) -> float:
    """Compute capability of an NVIDIA GPU; 0 for anything else.

    A GPU that is not there (`epdjax.mesh.targets`) counts as 8.0 at most: whether cuDNN takes wide heads, JAX asks of
    the GPU that the process itself has.
    """
    try:
        version = float(getattr(device, "compute_capability", 0.0))
    except ValueError:  # an AMD GPU says gfx942
        return 0.0
    return version if attached(device) else min(version, 8.0)


def attached(device: jax.Device) -> bool:
    """Whether the device is the process's own, and not just a target to compile for."""
    return device in jax.devices()


def unit_attend(kernel: str, mesh: Mesh) -> UnitAttend:
    """A kernel for encoders, each device attending to the units it has.

    Meshes that are alike get the same function, so that what is traced for one serves the others.
    """
    if kernel == REFERENCE:
        return blocked_attention
    return _units_bound(_unit_kernel(kernel), mesh.abstract_mesh)


@functools.cache
def _units_bound(attend_to_unit: UnitAttend, mesh: AbstractMesh) -> UnitAttend:
    units = PartitionSpec(mesh.axis_names)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, *, scattered: bool = False
    ) -> jax.Array:
        here = functools.partial(attend_to_unit, scattered=scattered)
        arrays = (q, k, v) if valid is None else (q, k, v, valid)
        return jax.shard_map(here, mesh=mesh, in_specs=units, out_specs=units, check_vma=False)(*arrays)

    return attend


def pages_attend(kernel: str, mesh: Mesh) -> PagesAttend:
    """A kernel for prefill and decode, each device attending with the heads it has; see `unit_attend`."""
    if kernel == REFERENCE:
        return attend_to_gathered
    reads, attend_here, options = _kernel(kernel, mesh)
    return _pages_bound(reads, attend_here, mesh.abstract_mesh, **options)


@functools.cache
def _pages_bound(
    reads: Reads, attend_here: Callable[..., jax.Array], mesh: AbstractMesh, **options: bool
) -> PagesAttend:
    def attend(q_btnh: jax.Array, pool: jax.Array, rows: PagedRows, kind: AttentionKind) -> jax.Array:
        arrays = reads(rows, kind)
        o_btnh = jax.shard_map(
            functools.partial(attend_here, kind=kind, **options),
            mesh=mesh,
            in_specs=(HEADS, HEADS, *(EVERYWHERE for _ in arrays)),
            out_specs=HEADS,
            check_vma=False,
        )(q_btnh, pool, *arrays)
        # Padding is written to block 0, which other rows gather as padding: no kernel may put a NaN there.
        return jnp.where(rows.valid_bt[..., None, None], o_btnh, 0)

    return attend


def _unit_kernel(kernel: str) -> UnitAttend:
    """A kernel for the units of one device."""
    if kernel == "rowwise":
        from epdjax.serving.attention import rowwise

        return rowwise.attend_to_unit
    from epdjax.serving.attention import cudnn

    return cudnn.attend_to_unit


def _kernel(kernel: str, mesh: Mesh) -> tuple[Reads, Callable[..., jax.Array], dict[str, bool]]:
    """What a kernel reads of the rows, and how it attends to the pages of a device, with its options. Imported where it
    is used: Pallas takes its time, and its backends come and go with versions of JAX."""
    if kernel == "cudnn":
        from epdjax.serving.attention import cudnn

        return cudnn.reads, cudnn.attend, {}
    if kernel == "rowwise":
        from epdjax.serving.attention import rowwise

        return rowwise.reads, rowwise.attend, {}
    device = mesh.devices.flat[0]
    if kernel == "pallas":
        from epdjax.serving.attention import pallas_gpu

        return pallas_gpu.reads, pallas_gpu.attend, {"interpret": device.platform == "cpu"}
    from epdjax.serving.attention import ragged_tpu

    return ragged_tpu.reads, ragged_tpu.attend, {"tuned": attached(device)}
