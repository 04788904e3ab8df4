"""Devices that are not there: compile-only GPUs and TPUs.

``jax.experimental.topologies`` runs the real XLA:GPU or XLA:TPU compiler for a chip this machine does not have, so that
a program's exact memory use and its optimised HLO can be read. The compiler comes with the ``cuda12`` or ``tpu`` extra;
no driver is needed. On a machine without a GPU set ``JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1`` before JAX is imported.
"""

import re

import jax
from jax.experimental import topologies

from epdjax.mesh.chips import chip_of_kind, unknown_chip

# Vendor facts of each chip, as XLA's GpuTargetConfigProto wants them.
_COMMON = """
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 dnn_version: "9.10.0"
"""
_GPUS = {
    "a100-80g": (
        "NVIDIA A100-SXM4-80GB",
        """
  core_count: 108 fpus_per_core: 64 shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  memory_bandwidth: 2039040000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 85100068864
  cuda_compute_capability { major: 8 }""",
    ),
    "h100-80g": (
        "NVIDIA H100 80GB HBM3",
        """
  core_count: 132 fpus_per_core: 128 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }""",
    ),
    "h200": (
        "NVIDIA H200 141GB HBM3e",
        """
  core_count: 132 fpus_per_core: 128 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 151397597184
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }""",
    ),
}
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_TPU_MEMORY = {"v5e": 16 << 30, "v5p": 95 << 30, "v6e": 32 << 30}


def peak_tflops(device: jax.Device) -> float | None:
    """10¹² floating-point operations a second that a device's vendor states for bfloat16; None if it is not known."""
    known = chip_of_kind(device.device_kind)
    return known.tflops if known else None


def peak_gbytes(device: jax.Device) -> float | None:
    """10⁹ bytes a second that a device's vendor states for its memory; None if it is not known."""
    known = chip_of_kind(device.device_kind)
    return known.gbytes if known else None


def target_memory(chip: str) -> int:
    """Bytes of memory of a chip, see `target_devices`.

    Raises:
        ValueError: an unknown chip.
    """
    if chip in _TPU_MEMORY:
        return _TPU_MEMORY[chip]
    if chip not in _GPUS:
        raise ValueError(unknown_chip(chip))
    match = re.search(r"device_memory_size: (\d+)", _GPUS[chip][1])
    assert match is not None, chip
    return int(match[1])


def target_devices(chip: str, count: int) -> list[jax.Device]:
    """`count` compile-only devices of a chip.

    Args:
        chip: ``a100-80g``, ``h100-80g``, ``h200``, ``v5e``, ``v5p`` or ``v6e``.
        count: at most 4 for a TPU.

    Raises:
        ValueError: an unknown chip, or more devices than its smallest slice has.
    """
    if chip in _GPUS:
        name, facts = _GPUS[chip]
        config = (
            f'gpu_device_info {{ {_COMMON} {facts} }} platform_name: "CUDA" '
            "dnn_version_info { major: 9 minor: 10 patch: 0 } runtime_version { major: 12 minor: 8 patch: 0 } "
            f'device_description_str: "{name}"'
        )
        topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x1x{count}")
        return list(topology.devices)
    if chip not in TPUS:
        raise ValueError(unknown_chip(chip))
    devices = topologies.get_topology_desc(TPUS[chip], "tpu").devices
    if count > len(devices):
        raise ValueError(f"{count} devices asked for; the slice {TPUS[chip]} has {len(devices)}")
    return list(devices[:count])
