"""``bench-transformers``: this engine beside transformers on torch, in turns on one machine."""

import argparse
from pathlib import Path

HELP = (
    "Answer the same conversations with this engine and with transformers' generate on torch, in turns in one process: "
    "the same random weights in float32, the same tokens. Requests per second, time to the first token, time per "
    "token, and what the machine allows at best."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mesh", default="1EPD", metavar="SPEC", help="which devices do what (default: %(default)s)")
    add("--requests", type=int, default=32, metavar="N", help="of the offline run (default: %(default)s)")
    add("--batch", type=int, default=32, metavar="N", help="most conversations of transformers' batches (default: 32)")
    add("--concurrent", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="answers at once (default: 1 8 32)")
    add("--repeats", type=int, default=3, metavar="N", help="of everything, after a first round (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="of torch (default: one per core)")
    add("--layers", type=int, nargs=2, metavar=("V", "T"), help="of tower and decoder (default: 12 16, 0.2 billion)")
    add("--compile-cache", metavar="DIR", help="of this engine (default: none)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    import dataclasses
    import sys
    import tempfile

    from epdjax.cli.progress import CompileProgress
    from epdjax.mesh.devices import resolve_mesh
    from epdjax.models.random_checkpoint import InternVLSize, write_random_internvl
    from epdjax.planning.benchmarks.contestants import Epdjax, Transformers
    from epdjax.planning.benchmarks.paired import Plan, compare

    size = InternVLSize()
    if arguments.layers:
        vision, text = arguments.layers
        size = dataclasses.replace(size, vision_layers=vision, text_layers=text)
    plan = Plan(arguments.requests, concurrent=tuple(arguments.concurrent), repeats=arguments.repeats)
    resolve_mesh(arguments.mesh)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_random_internvl(folder, size)
        try:
            theirs = Transformers(folder, arguments.batch, arguments.threads)
        except ImportError as error:
            print(f"the comparison needs torch, which is not installed ({error}); pip install torch", file=sys.stderr)
            return 2
        with CompileProgress() as progress:
            ours = Epdjax(
                folder,
                arguments.mesh,
                max_model_len=1024,
                max_seqs=max(plan.concurrent),
                progress=progress,
                compile_cache=arguments.compile_cache,
            )
        try:
            made_of = compare(ours, theirs, size, plan)
        finally:
            ours.close()
            theirs.close()
    print(f"| | {ours.name} | {theirs.name} | times as good | best possible |")
    print("|---|---|---|---|---|")
    for m in made_of.measured:
        mine, other = (m.median(side.name) for side in (ours, theirs))
        ratio = mine / other if m.unit == "requests/s" else other / mine
        cells = [_cell(m.values[side.name]) for side in (ours, theirs)]
        print(f"| {m.what}, {m.unit} | {cells[0]} | {cells[1]} | {ratio:.2f} | {m.best:.3g} |")
    alike = f"{made_of.same} of {made_of.answers} answers have the same tokens"
    where = "" if made_of.first_difference is None else f", the others from token {made_of.first_difference} on"
    print(f"\n{alike}{where}. Medians of {plan.repeats}, and ranges. The machine multiplies matrices at")
    print(f"{made_of.flops_per_s / 1e9:.0f} GFLOP/s and reads memory at {made_of.bytes_per_s / 1e9:.1f} GB/s.")
    return 0


def _cell(values: list[float]) -> str:
    import statistics

    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
