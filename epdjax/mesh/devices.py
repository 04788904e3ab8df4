"""Getting the devices a mesh spec needs, and dividing them into submeshes."""

import dataclasses
import logging
from collections.abc import Sequence

import jax

from epdjax.mesh.places import Place, places_of
from epdjax.mesh.sharding import Submesh
from epdjax.mesh.spec import MeshSpec, MeshSpecError, auto_spec

log = logging.getLogger(__name__)

# Virtual CPU devices made for a bare `--mesh`: enough for three stages and IRP, few enough for a laptop.
AUTO_CPU_DEVICES = 4


@dataclasses.dataclass(frozen=True)
class InstanceMesh:
    """One instance of a deployment: its name, roles and devices."""

    name: str
    roles: str
    submesh: Submesh


def resolve_mesh(text: str | None) -> tuple[MeshSpec, list[jax.Device]]:
    """The mesh spec meant by `text` and the devices for it; ``auto`` or None lets the machine decide.

    On a CPU-only machine the needed number of virtual devices is made, provided JAX has not made its backend yet.

    Raises:
        MeshSpecError: the spec is malformed or wants more devices than there are.
    """
    spec = None if text in (None, "auto") else MeshSpec.parse(text or "")
    _want_cpu_devices(spec.devices if spec else AUTO_CPU_DEVICES)
    devices = jax.devices()
    if spec is None:
        count = min(len(devices), AUTO_CPU_DEVICES) if devices[0].platform == "cpu" else len(devices)
        spec = auto_spec(count)
    if spec.devices > len(devices):
        raise MeshSpecError(
            f"mesh spec {spec} takes {spec.devices} devices and this process has {len(devices)} "
            f"({devices[0].platform}); choose a smaller split such as {auto_spec(len(devices))}"
            + (", or start a process that has not used JAX yet" if devices[0].platform == "cpu" else "")
        )
    return spec, list(devices[: spec.devices])


def _want_cpu_devices(count: int) -> None:
    """Ask for `count` virtual CPU devices; harmless where accelerators are the default platform."""
    try:
        asked: int = getattr(jax.config, "jax_num_cpu_devices", -1)  # unknown to jax's own type hints
        if asked < count:  # a larger number asked for before stays
            jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend exists already: its devices are what there is
        log.debug("JAX is already initialised; keeping its devices")


def divide(spec: MeshSpec, devices: list[jax.Device], *, irp: bool = True) -> list[InstanceMesh]:
    """The instances of a mesh spec on at least ``spec.devices`` devices; see `places_of`."""
    return [on_devices(place, devices) for place in places_of(spec, irp=irp)]


def on_devices(place: Place, devices: Sequence[jax.Device]) -> InstanceMesh:
    """A place on the deployment's devices."""
    mine = [devices[position] for position in place.devices]
    return InstanceMesh(place.name, place.roles, Submesh.of(mine, data=place.data, tensor=place.tensor))
