"""``profile``: what a model's steps take on the devices at hand, in a file that planning reads."""

import argparse
import math
import shlex
import sys
from pathlib import Path

SETTINGS = (
    "mesh",
    "dtype",
    "attention",
    "max_model_len",
    "max_seqs",
    "max_chunk",
    "max_units",
    "block_size",
    "kv_blocks",
    "buckets",
)
HELP = (
    "Time the compiled steps of every kind of instance over all their shapes, moves between instances and the host's "
    "own work, and write a JSON profile for planning. Weights are random."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=None, metavar="DIR|PRESET", help="checkpoint folder or preset (default: the demo model)")
    add("--mesh", default="1EPD", metavar="SPEC", help="which devices do what (default: %(default)s)")
    add("-o", "--output", type=Path, metavar="FILE", help="where to write it (default: MODEL-MESH.profile.json)")
    add("--dtype", default="auto", help="of weights and caches (default: as serve chooses it)")
    add("--attention", default="auto", metavar="KERNEL", help="as in serve (default: %(default)s)")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together (default: as in serve)")
    add("--max-seqs", type=int, default=16, metavar="N", help="sequences decoded together (default: %(default)s)")
    add("--max-chunk", type=int, default=512, metavar="N", help="prompt tokens per prefill step (default: %(default)s)")
    add("--max-units", type=int, default=8, metavar="N", help="encode units per device and step (default: %(default)s)")
    add("--block-size", type=int, default=16, metavar="N", help="tokens per KV block (default: %(default)s)")
    add("--kv-blocks", type=int, metavar="N", help="of each instance (default: what memory leaves)")
    add("--buckets", choices=("full", "trimmed"), default="full", help="compiled shapes (default: %(default)s)")
    add("--no-irp", action="store_true", help="encoders that do not share the units of a request")
    add("--repeats", type=int, default=5, metavar="N", help="timed calls of each step, at least (default: %(default)s)")
    add("--seconds", type=float, default=10.0, metavar="S", help="of timing, at least (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Time, write, and say where."""
    from epdjax.cli.progress import CompileProgress
    from epdjax.demo import demo_model_path
    from epdjax.mesh.devices import resolve_mesh
    from epdjax.planning.costs import Profiler
    from epdjax.planning.costs.live import live_times
    from epdjax.planning.memory import PlannedModel
    from epdjax.serving.config import EngineConfig

    name = arguments.model or str(demo_model_path())
    folder = Path(name) if Path(name).is_dir() else None
    try:
        model = PlannedModel.of(name)
        config = EngineConfig(model=name, irp=not arguments.no_irp, **{n: getattr(arguments, n) for n in SETTINGS})
        if arguments.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, not {arguments.repeats}")
        if not 0 <= arguments.seconds < math.inf:
            raise ValueError(f"--seconds must be 0 or more, and finite, not {arguments.seconds:g}")
        output = arguments.output or Path(f"{Path(name).name}-{config.mesh}.profile.json")
        if not output.parent.is_dir():
            raise ValueError(f"cannot write {output}: there is no folder {output.parent}; make it, or name another")
        _, devices = resolve_mesh(config.mesh)
        automatic = "float32" if devices[0].platform == "cpu" else model.dtype.name
        with CompileProgress() as progress:
            dtype = automatic if config.dtype == "auto" else config.dtype
            live = live_times(config, folder, dtype, arguments.seconds) if folder else None
            profiler = Profiler(
                model.family,
                model.config,
                config,
                name=folder.resolve().name if folder else name,
                dtype=dtype,
                checkpoint=folder,
                progress=progress,
            )
            command = shlex.join(["epdjax", *sys.argv[1:]])
            profile = profiler.take(live, repeats=arguments.repeats, least_s=arguments.seconds, command=command)
        profile.save(output)
    except (ValueError, OSError) as error:
        print(f"no profile: {error}", file=sys.stderr)
        return 2
    for kind in profile.kinds:
        steps = {stage: getattr(kind, stage) for stage in ("encode", "prefill", "decode", "mm_moves", "kv_moves")}
        timed = ", ".join(
            f"{len(points)} of {stage} ({min(p.seconds for p in points) * 1e3:.2f} to "
            f"{max(p.seconds for p in points) * 1e3:.2f} ms)"
            for stage, points in steps.items()
            if points
        )
        print(f"{kind.roles}, {max(kind.tensor, kind.encode_width)} wide: {timed}")
    if profile.preprocessing:
        print(f"host: {profile.preprocessing.megapixel_s * 1e3:.1f} ms a megapixel of a picture")
    print(f"written to {output}")
    return 0
