"""``plan-memory``: what each role of a model takes of a chip's memory, compiled without the chip, and what fits."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epdjax.planning.memory import InstanceMemory
    from epdjax.planning.memory_search import InstancePlan
    from epdjax.serving.footprint import Footprint

HELP = (
    "Compile a model's largest steps for a chip that need not be here and say, for each kind of instance of a mesh, "
    "what it takes of a device's memory and the most that fits. Without --mesh: a table of models, one line each. GPUs "
    "need the cuda12 extra, TPUs the tpu extra."
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
    add(
        "models", nargs="*", metavar="MODEL", help="presets, such as InternVL2-8B, or checkpoint folders (default: all)"
    )
    add("--mesh", metavar="SPEC", help="which devices do what, such as 5E2P1D or 2E1Px2,1Dx4; takes one MODEL")
    add("--chip", default="a100-80g", help="a100-80g, h100-80g, h200, v5e, v5p, v6e, or here (default: %(default)s)")
    add("--json", action="store_true", help="with --mesh: print JSON")
    add("--tensor", type=int, nargs="+", metavar="N", help="without --mesh: devices per language model")
    engine = parser.add_argument_group("engine, as serve takes them")
    add = engine.add_argument
    add("--dtype", default="auto", help="of weights and pools (default: the checkpoint's; presets: bfloat16)")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together, tokens (default: 8192)")
    add("--max-seqs", type=int, default=16, metavar="N", help="sequences decoded together (default: %(default)s)")
    add("--max-chunk", type=int, default=512, metavar="N", help="prompt tokens per prefill step (default: %(default)s)")
    add("--max-units", type=int, default=8, metavar="N", help="encode units per device and step (default: %(default)s)")
    add("--mm-blocks", type=int, metavar="N", help="MM blocks per prefill instance (a tile each, or 64 tokens)")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks per instance (default: what memory leaves)")
    add("--memory-share", type=float, default=0.9, metavar="X", help="of device memory to use (default: %(default)s)")
    requests = parser.add_argument_group("requests, with --mesh")
    add = requests.add_argument
    add("--pictures", type=int, default=1, metavar="N", help="that every request may have (default: %(default)s)")
    add("--resolution", default="4032x3024", metavar="WxH", help="of a picture, pixels (default: %(default)s)")
    add("--units-per-picture", type=int, metavar="N", help="encode units (default: what the model makes of it)")
    add("--tokens-per-unit", type=int, metavar="N", help="MM tokens (default: what the model makes of it)")
    add("--text-tokens", type=int, default=32, metavar="N", help="of text and answer (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Compile and print."""
    if arguments.chip != "here":
        # The compiler for the chip is wanted, not the chip; both are read when JAX is imported.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        return _plan(arguments) if arguments.mesh else _table(arguments)
    except ValueError as error:
        print(f"no plan: {error}", file=sys.stderr)
        return 2


def _config(arguments: argparse.Namespace) -> Any:
    from epdjax.serving.config import EngineConfig

    settings = ("max_model_len", "max_seqs", "max_chunk", "max_units", "mm_blocks", "kv_blocks", "memory_share")
    return EngineConfig(model="planned", **{name: getattr(arguments, name) for name in settings})


def _table(arguments: argparse.Namespace) -> int:
    from epdjax.mesh.spec import MeshSpec
    from epdjax.models.presets import PRESETS
    from epdjax.planning.memory import Chip, PlannedModel
    from epdjax.serving.footprint import footprint

    models = [PlannedModel.of(name, arguments.dtype) for name in arguments.models or PRESETS]
    chip, config = Chip.of(arguments.chip, MeshSpec.parse("1EPD")), _config(arguments)
    memory = chip.memory * arguments.memory_share
    print(f"{chip.name}: {memory / GIB:.1f} GiB of a device to be used; GiB per device")
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for model in models:
        for width in arguments.tensor or WIDTHS.get(model.name, (1,)):
            devices = list(chip.devices(width))
            measured = footprint(model.family, model.config, devices, config, model.dtype)
            print(f"| {model.name} | {width} | {' | '.join(cells(measured, memory))} |", flush=True)
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


def _plan(arguments: argparse.Namespace) -> int:
    from epdjax.mesh.spec import MeshSpec
    from epdjax.planning.media_sizes import Media
    from epdjax.planning.memory import Chip, PlannedModel
    from epdjax.planning.memory_search import check_requests, picture_of, plan_mesh

    if len(arguments.models) != 1:
        raise ValueError(f"--mesh takes one model, not {len(arguments.models)}")
    width, _, height = arguments.resolution.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--resolution is width x height in pixels, such as 4032x3024, not {arguments.resolution!r}")
    mesh = MeshSpec.parse(arguments.mesh)
    chip, model = Chip.of(arguments.chip, mesh), PlannedModel.of(arguments.models[0], arguments.dtype)
    config = _config(arguments)
    picture = picture_of(
        model.config, Media("image", int(width), int(height)), arguments.units_per_picture, arguments.tokens_per_unit
    )
    check_requests(model, config, picture, arguments.pictures, arguments.text_tokens)
    plans = plan_mesh(model, mesh, chip, config, picture, arguments.text_tokens)
    if arguments.json:
        said = {
            "model": model.name,
            "mesh": str(mesh),
            "chip": chip.name,
            "device_memory": chip.memory,
            "dtype": model.dtype.name,
            "instances": [plan.as_dict() for plan in plans],
        }
        print(json.dumps(said, indent=2))
        return 0
    budget = plans[0].memory.budget / GIB
    print(f"{model.name} on {mesh}, {chip.name}: {budget:.1f} GiB of a device to be used; GiB per device")
    print(_report(plans))
    return 0


def _report(plans: "list[InstancePlan]") -> str:
    """Two tables: what each kind of instance takes, and the most that fits."""
    columns = "instances|weights|MM pool|KV pool|staged, slots|largest step|peak|left|KV tokens"
    lines = ["", f"| {columns.replace('|', ' | ')} |", f"|{'---|' * len(columns.split('|'))}"]
    for made in (plan.memory for plan in plans):
        stage = max(made.steps, key=lambda stage: made.steps[stage])
        sizes = [made.weights, made.mm_pool, made.kv_pool, made.staged + made.slots]
        cells = [f"{size / GIB:.2f}" for size in sizes]
        cells += [f"{made.working / GIB:.2f} ({stage})", f"{made.peak / GIB:.2f}", f"{made.left / GIB:.2f}"]
        lines.append(f"| {_name(made)} | {' | '.join(cells)} | {made.kv_tokens:,} |")
    columns = "instances|encode units a step|pictures of a request|sequences decoded together|KV share of free memory"
    lines += ["", "The most that fits, each with all else as it is:", ""]
    lines += [f"| {columns.replace('|', ' | ')} |", f"|{'---|' * len(columns.split('|'))}"]
    for plan in plans:
        most = plan.limits
        cells = ["" if size is None else f"{size:,}" for size in (most.units, most.pictures, most.sequences)]
        cells[1] += f" ({most.pictures_bound})" if most.pictures_bound else ""
        cells.append("" if most.kv_share is None else f"{100 * most.kv_share:.1f} %")
        lines.append(f"| {_name(plan.memory)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(made: "InstanceMemory") -> str:
    width = f"x{made.tensor}" if made.tensor > 1 else ""
    return f"{made.roles}{width}, {made.devices} device{'s' * (made.devices > 1)}"
