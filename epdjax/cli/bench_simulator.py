"""``bench-simulator``: does the simulator say what the live engine does?"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epdjax.planning.benchmarks.fidelity import Fidelity

HELP = (
    "Time the steps of a deployment, serve a Poisson trace of text and pictures with it, and simulate the same trace "
    "with those times: TTFT and TPOT of both, and whether the live scheduler's decisions are those of another one told "
    "the same. For an idle machine."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: 0.2 billion random weights)")
    add("--mesh", nargs="+", default=["1EPD", "1E1P1D", "2E1P2D"], metavar="SPEC", help="one engine after another")
    add("--rate", type=float, default=0.3, metavar="R", help="requests per second (default: %(default)s)")
    add("--requests", type=int, default=12, metavar="N", help="of each trace (default: %(default)s)")
    add("--max-model-len", type=int, default=2048, metavar="N", help="context (default: %(default)s)")
    add("--rounds", type=int, default=8, metavar="N", help="of timing and of a trace, in turns (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the first trace")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, a mesh at a time; 0 if no decision differs."""
    import tempfile

    from epdjax.models.random_checkpoint import InternVLSize, write_random_internvl
    from epdjax.planning.benchmarks.fidelity import compare

    settings = {"max_model_len": arguments.max_model_len, "buckets": "trimmed"}
    trace = {"rate": arguments.rate, "count": arguments.requests, "seed": arguments.seed}
    trace |= {"rounds": arguments.rounds}
    same = True
    print("| mesh | | live mean, p50, p90 ms | simulated | off by | decisions |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.model or Path(made)
        if arguments.model is None:
            write_random_internvl(folder, InternVLSize())
        for mesh in arguments.mesh:
            try:
                found = compare(folder, mesh, **trace, **settings)
            except ValueError as error:
                print(f"no comparison: {error}", file=sys.stderr)
                return 2
            same &= found.difference is None
            decisions = f"{found.decisions}, " + ("the same" if found.difference is None else "not the same")
            for metric in ("ttft", "tpot"):
                print(f"| {mesh} | {metric.upper()} | {_row(found, metric)} | {decisions} |", flush=True)
    return 0 if same else 1


def _row(found: "Fidelity", metric: str) -> str:
    statistics = ("mean", "p50", "p90")
    runs = (
        ", ".join(f"{getattr(getattr(run, metric), statistic) * 1e3:.4g}" for statistic in statistics)
        for run in found.reports
    )
    return " | ".join([*runs, ", ".join(f"{found.error(metric, statistic):+.0%}" for statistic in statistics)])
