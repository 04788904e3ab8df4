"""Submeshes, and the one table that says where each logical axis of an array lands on them.

Every submesh has the same two axes: ``data`` (encode units are spread over it: IRP) and ``tensor`` (heads, MLP columns
and vocabulary rows). An E group is ``data`` wide, a P or D instance ``tensor`` wide.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]

# logical axis -> mesh axis or axes. What is not here, or None, is replicated.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "unit": ("data", "tensor"),  # encode units: over all the devices there are
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": None,
    "vision_in": None,  # an encoder is small and data parallel: every device holds it whole
    "vision_out": None,
}
# Axes that fall back to replication where the tensor width does not divide them (a vocabulary of 151,655, say).
OPTIONAL = frozenset({"vocab"})


@dataclasses.dataclass(frozen=True)
class Submesh:
    """The devices of one instance."""

    mesh: Mesh

    @classmethod
    def of(cls, devices: Sequence[jax.Device], *, data: int = 1, tensor: int = 1) -> "Submesh":
        grid = np.array(devices, dtype=object).reshape(data, tensor)
        return cls(Mesh(grid, ("data", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto)))

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        return tuple(self.mesh.devices.flat)

    @property
    def width(self) -> int:
        """Number of devices."""
        return self.mesh.devices.size

    def sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of an array of `shape` with logical `axes`.

        Raises:
            ValueError: a mesh axis is used twice, or does not divide the dimension it should split.
        """
        return _sharding(self.mesh, axes, tuple(shape))

    @property
    def replicated(self) -> NamedSharding:
        return _sharding(self.mesh, (), ())


@functools.lru_cache(maxsize=4096)  # a fresh NamedSharding per call would miss the C++ fast path of device_put and jit
def _sharding(mesh: Mesh, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
    spec: list[str | tuple[str, ...] | None] = []
    used: list[str] = []
    for axis, size in zip(axes, shape, strict=True):
        physical = RULES.get(axis) if axis else None
        names = (physical,) if isinstance(physical, str) else (physical or ())
        width = int(np.prod([mesh.shape[name] for name in names]))
        if axis in OPTIONAL and size % width:
            names, physical = (), None
        elif size % width:
            raise ValueError(f"{axis} has {size} entries, which {width} devices cannot share equally")
        if width > 1:
            used += names
        spec.append(physical)
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {axes} put one mesh axis on two dimensions")
    return NamedSharding(mesh, PartitionSpec(*spec))
