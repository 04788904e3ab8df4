"""``abuse-test``: one bad client beside good ones; do these notice?"""

import argparse
import dataclasses
import json
from pathlib import Path

MOST_KEPT_MB = 50.0
HELP = (
    "Start a server and abuse it in several ways, three times each, while a good request comes every half second. "
    "Prints how many of these were right, late (more than twice the p99 alone) or lost, and the memory of all "
    "processes. Fails if one was wrong or lost, or if the third time leaves 50 MB more than the first. Linux only."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", default="1E1P1D", metavar="SPEC", help="of the server (default: %(default)s)")
    add("--case", action="append", metavar="NAME", help="only this one; may be repeated")
    add("--json", type=Path, metavar="FILE", help="for the numbers")


def run(arguments: argparse.Namespace) -> int:
    """Run the cases; 0 if the good requests came through."""
    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.abuse.cases import CASES
    from epdjax.planning.benchmarks.abuse.run import run as abuse

    names = arguments.case or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        print(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
        return 2
    report = abuse(arguments.model or demo_model_path(), arguments.mesh, names, lambda line: print(line, flush=True))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    fine = all(case.right == case.sent and not case.lost and case.kept_mb <= MOST_KEPT_MB for case in report.cases)
    return 0 if fine else 1
