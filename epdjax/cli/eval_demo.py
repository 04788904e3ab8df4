"""``eval-demo``: does the demo model answer well, and the same on every mesh?"""

import argparse
import json
from pathlib import Path

HELP = (
    "Ask the demo model held-out questions through the engine. Fails where fewer than 95 % of all answers or 90 % of "
    "those to one kind of question are right, or where two mesh specs answer differently."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", nargs="+", default=["1EPD", "2E1P1D"], metavar="SPEC", help="to compare (default: 1EPD 2E1P1D)")
    add("--per-kind", type=int, default=100, metavar="N", help="questions of each kind (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="other seeds ask other questions; none was trained on")
    add("--json", type=Path, metavar="FILE", help="for the numbers")
    add("--show-wrong", type=int, default=0, metavar="N", help="print up to N wrong answers")


def run(arguments: argparse.Namespace) -> int:
    """Ask, count, print; 0 if all thresholds are met."""
    from rich.console import Console

    from epdjax.demo import demo_model_path
    from epdjax.demo.evaluate import differences, evaluate_all, held_out_questions, table

    console = Console()
    asked = held_out_questions(arguments.per_kind, arguments.seed)
    reports = evaluate_all(arguments.model or demo_model_path(), arguments.mesh, asked)
    console.print(table(reports))
    for item, answer in reports[0].wrong(asked)[: arguments.show_wrong]:
        console.print(f"{item.question.kind}: {item.question.text!r} -> {answer!r}, not {item.question.answer!r}")
    different = differences(reports)
    console.print(f"answers that differ between mesh specs: {different}")
    if arguments.json is not None:
        result = {"meshes": [report.as_json() for report in reports], "different_answers": different}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if different == 0 and all(report.passed for report in reports) else 1
