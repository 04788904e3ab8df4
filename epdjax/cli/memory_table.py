"""``memory-table``: what published models take of a chip's memory in each role, compiled without the chip."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epdjax.serving.footprint import Footprint

HELP = (
    "Compile the largest encode, prefill and decode of published models at full size for a chip that need not be here. "
    "Print what weights and steps take of its memory, and what is left for KV. GPUs need the cuda12 extra."
)
# GiB per device: weights of both parts, then the steps, then what roles have left for KV.
COLUMNS = (
    "preset",
    "tensor",
    "encoder",
    "language model",
    "encode",
    "prefill, MM pool",
    "decode",
    "KV on E+P+D",
    "KV on P",
    "KV on D",
    "tokens on D",
)
# Devices that share a language model, where one does not hold it or leaves it little; else one.
WIDTHS = {"Gemma-3-27B": (1, 2), "InternVL2-26B": (1, 2), "Qwen2.5-VL-72B": (4, 8)}
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("presets", nargs="*", metavar="PRESET", help="such as InternVL2-8B (default: all)")
    add("--chip", default="a100-80g", help="a100-80g, h100-80g, h200, v5e, v5p or v6e (default: %(default)s)")
    add("--tensor", type=int, nargs="+", metavar="N", help="devices per language model (default: by the model's size)")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together, tokens (default: 8192)")
    add("--max-seqs", type=int, default=16, metavar="N", help="sequences decoded together (default: %(default)s)")
    add("--max-chunk", type=int, default=512, metavar="N", help="prompt tokens per prefill step (default: %(default)s)")
    add("--max-units", type=int, default=8, metavar="N", help="encode units per device and step (default: %(default)s)")
    add("--memory-share", type=float, default=0.9, metavar="X", help="of device memory to use (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Compile and print, a model at a time."""
    # The compiler for the chip is wanted, not the chip; both are read when JAX is imported.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from epdjax.mesh.targets import target_devices, target_memory
    from epdjax.models.presets import PRESETS, preset
    from epdjax.serving.config import EngineConfig
    from epdjax.serving.footprint import footprint

    settings = ("max_model_len", "max_seqs", "max_chunk", "max_units", "memory_share")
    try:
        models = {name: preset(name) for name in arguments.presets or PRESETS}
        memory = target_memory(arguments.chip) * arguments.memory_share
        config = EngineConfig(model="preset", **{name: getattr(arguments, name) for name in settings})
        print(f"{arguments.chip}: {memory / GIB:.1f} GiB of a device to be used; bfloat16, GiB per device")
        print(f"| {' | '.join(COLUMNS)} |")
        print(f"|{'---|' * len(COLUMNS)}")
        for name, (family, model) in models.items():
            for width in arguments.tensor or WIDTHS.get(name, (1,)):
                measured = footprint(family, model, target_devices(arguments.chip, width), config)
                print(f"| {name} | {width} | {' | '.join(cells(measured, memory))} |", flush=True)
    except ValueError as error:
        print(f"no table: {error}", file=sys.stderr)
        return 2
    return 0


def cells(measured: "Footprint", memory: float) -> list[str]:
    """What `measured` takes of `memory` bytes, in the order of `COLUMNS`."""
    taken = [measured.weights("E"), measured.weights("D"), *(measured.working(role) for role in "EPD")]
    left = [measured.left(roles, memory) for roles in ("EPD", "P", "D")]
    return [
        *(f"{size / GIB:.2f}" for size in taken),
        *(f"{size / GIB:.1f}" if size >= 0 else f"{-size / GIB:.1f} short" for size in left),
        f"{measured.kv_tokens('D', memory):,}",
    ]
