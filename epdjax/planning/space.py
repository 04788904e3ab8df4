"""Ways to serve a model on some devices: mesh specs, and the settings that go with them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from epdjax.mesh.spec import Group, MeshSpec

PARTITIONS = (("EPD",), ("EP", "D"), ("E", "PD"), ("ED", "P"), ("E", "P", "D"))
"""Which stages share instances. Each stage is performed by one kind of instance."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A deployment to consider; the settings are those of `EngineConfig`."""

    mesh: str
    max_units: int = 8
    max_chunk: int = 512
    max_seqs: int = 16
    order: str = "fcfs"
    assignment: str = "cache-aware"
    irp: bool = True

    @property
    def devices(self) -> int:
        return MeshSpec.parse(self.mesh).devices

    @property
    def settings(self) -> dict[str, Any]:
        """All but the mesh, as `EngineConfig` takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "mesh"}

    @property
    def flags(self) -> str:
        """What ``serve`` is told."""
        words = [f"--mesh {self.mesh}", f"--max-units {self.max_units}", f"--max-chunk {self.max_chunk}"]
        words += [f"--max-seqs {self.max_seqs}", f"--order {self.order}", f"--assignment {self.assignment}"]
        return " ".join(words + (["--no-irp"] if not self.irp else []))


@dataclasses.dataclass(frozen=True)
class Space:
    """What may be chosen from.

    Attributes:
        devices: numbers of devices that may be used.
        tensor: widths that a language model may be spread over.
        partitions: some of `PARTITIONS`.
        max_units, max_chunk, max_seqs, order, assignment, irp: values of each setting.

    Raises:
        ValueError: an empty list, or numbers of devices or widths below 1.
    """

    devices: tuple[int, ...] = (8,)
    tensor: tuple[int, ...] = (1,)
    partitions: tuple[tuple[str, ...], ...] = PARTITIONS
    max_units: tuple[int, ...] = (2, 8)
    max_chunk: tuple[int, ...] = (512, 2048)
    max_seqs: tuple[int, ...] = (16, 64)
    order: tuple[str, ...] = ("fcfs",)
    assignment: tuple[str, ...] = ("cache-aware",)
    irp: tuple[bool, ...] = (True,)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name):
                raise ValueError(f"{field.name} is empty: give at least one value")
        for name in ("devices", "tensor"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, not {min(getattr(self, name))}")

    @property
    def settings(self) -> dict[str, tuple[Any, ...]]:
        """Values of every setting of a `Choice` but the mesh."""
        names = ("max_units", "max_chunk", "max_seqs", "order", "assignment", "irp")
        return {name: getattr(self, name) for name in names}

    def meshes(self) -> list[str]:
        """All mesh specs."""
        found = (
            mesh
            for devices in self.devices
            for partition in self.partitions
            for widths in itertools.product(*(self.tensor if roles != "E" else (1,) for roles in partition))
            for mesh in _meshes(devices, partition, widths)
        )
        return list(dict.fromkeys(found))

    def __iter__(self) -> Iterator[Choice]:
        for mesh in self.meshes():
            for values in itertools.product(*self.settings.values()):
                yield Choice(mesh, **dict(zip(self.settings, values)))

    def __len__(self) -> int:
        count = len(self.meshes())
        for values in self.settings.values():
            count *= len(values)
        return count


def _meshes(devices: int, partition: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Specs that use exactly so many devices."""
    if len(partition) == 1:
        if devices >= widths[0] and devices % widths[0] == 0:
            yield str(MeshSpec((Group(devices // widths[0], partition[0], widths[0]),)))
        return
    for count in range(1, devices // widths[0] + 1):
        first = str(Group(count, partition[0], widths[0]))
        for rest in _meshes(devices - count * widths[0], partition[1:], widths[1:]):
            yield f"{first}{',' if widths[0] > 1 else ''}{rest}"
