"""Chips and their published peaks. No JAX."""

import dataclasses

from epdjax.nearest import nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip as its vendor describes it.

    Attributes:
        name: as `epdjax.mesh.targets` takes it.
        device_kind: what `jax.Device.device_kind` of such a chip starts with.
        tflops: 10¹² floating-point operations a second, dense bfloat16 products.
        gbytes: 10⁹ bytes a second of its memory.
        link_gbytes: 10⁹ bytes a second that it sends to its neighbours, all its links together, in one direction.
    """

    name: str
    device_kind: str
    tflops: float
    gbytes: float
    link_gbytes: float


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("a100-80g", "NVIDIA A100-SXM4-80GB", 312.0, 2039.0, 300.0),
        Chip("h100-80g", "NVIDIA H100 80GB", 989.0, 3352.0, 450.0),
        Chip("h200", "NVIDIA H200", 989.0, 4800.0, 450.0),
        Chip("v5e", "TPU v5 lite", 197.0, 819.0, 200.0),
        Chip("v5p", "TPU v5", 459.0, 2765.0, 600.0),
        Chip("v6e", "TPU v6 lite", 918.0, 1640.0, 400.0),
    )
}
"""By name. GPUs are the SXM modules of NVIDIA's data sheets for the A100 80GB, H100 and H200, without sparsity; those
state NVLink in both directions together (600 and 900 GB/s), which is halved here. TPUs are those of the Cloud TPU pages
"TPU v5e", "TPU v5p" and "TPU v6e", which state the links in bits (1600, 4800 and 3200 Gbit/s)."""


def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
        ValueError: there is none; the message has the nearest.
    """
    if name in CHIPS:
        return CHIPS[name]
    raise ValueError(unknown_chip(name))


def unknown_chip(name: str) -> str:
    """What to say of a chip that there is not, with the nearest that there is."""
    return f"unknown chip {name!r}; {nearest(name, CHIPS)}"


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip of a device by its `jax.Device.device_kind`; None if it is not known."""
    return next((chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kind)), None)
