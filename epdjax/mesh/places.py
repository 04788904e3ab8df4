"""Places: which of a deployment's devices make up which instance. Positions and names only; no JAX."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from epdjax.mesh.spec import Group, MeshSpec


@dataclasses.dataclass(frozen=True)
class Place:
    """An instance's devices and roles.

    Attributes:
        name: unique in the deployment; it stays when roles change.
        roles: some of ``"EPD"``, in this order.
        devices: their positions among the deployment's devices. Where the one role is E they encode together (IRP),
            otherwise they share tensors.
    """

    name: str
    roles: str
    devices: tuple[int, ...]

    @property
    def data(self) -> int:
        """Devices that share encode units."""
        return len(self.devices) if self.roles == "E" else 1

    @property
    def tensor(self) -> int:
        """Devices that share tensors."""
        return len(self.devices) // self.data

    def __str__(self) -> str:
        stages = {"E": "encode", "P": "prefill", "D": "decode"}
        what = " + ".join(stages[role] for role in self.roles)
        return f"{self.name} ({what}, {len(self.devices)} device{'s' * (len(self.devices) > 1)})"


def places_of(spec: MeshSpec, *, irp: bool = True) -> list[Place]:
    """Hand out devices to instances, in the order of the spec.

    Args:
        irp: make each E group one instance; otherwise every E device is an instance of its own.
    """
    widths = []
    for group in spec.groups:
        together = group.roles == "E" and irp
        width = group.count if together else group.tensor
        widths += [(group.roles, width)] * (1 if together else group.count)
    starts = itertools.accumulate((width for _, width in widths), initial=0)
    return [
        Place(f"i{number}", roles, tuple(range(start, start + width)))
        for number, ((roles, width), start) in enumerate(zip(widths, starts))
    ]


def spec_of(places: Iterable[Place]) -> MeshSpec:
    """The mesh spec that says the same, apart from which devices they are."""
    counts: dict[tuple[str, int], int] = {}
    for place in sorted(places, key=lambda place: ["EPD".index(role) for role in place.roles]):
        kind = place.roles, place.tensor
        counts[kind] = counts.get(kind, 0) + place.data
    return MeshSpec(tuple(Group(count, roles, tensor) for (roles, tensor), count in counts.items()))


def free_name(places: Sequence[Place]) -> str:
    """A name for one more instance."""
    taken = {place.name for place in places}
    return next(name for number in itertools.count() if (name := f"i{number}") not in taken)
