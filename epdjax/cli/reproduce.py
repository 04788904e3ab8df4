"""``reproduce``: tables and figures of the EPD paper beside what this project makes of them."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epdjax.planning.paper.tables import Row

HELP = (
    "The EPD paper's tables and figures: what it states, its stack simulated (calibrated on a few of its points), and "
    "this scheduler with the same times; what this engine should do there (engine: a roofline); tables 2, 3 and 8 from "
    "compiles of this project's steps for an A100, minutes each, which need the cuda12 extra."
)
TABLES = ("table1", "table4", "table5", "table6", "table7", "figure6", "offline")
ENGINE = "engine"
MEMORY = ("table2", "table3", "table8", "memory-claims")
FIGURES = {
    "figure5": ("MiniCPM-V 2.6, four 4K pictures", 4),
    "figure11-2": ("MiniCPM-V 2.6, two 4K pictures", 2),
    "figure11-6": ("MiniCPM-V 2.6, six 4K pictures", 6),
    "figure11-8": ("MiniCPM-V 2.6, eight 4K pictures", 8),
    "figure7": ("NextQA, 8 frames", 8),
    "figure8": ("Video-MME, 64 frames", 64),
}
RATES = {  # requests per second
    "figure7": (1.0, 4.0, 8.0, 10.0, 12.0, 15.0, 20.0),
    "figure8": (0.25, 0.5, 1.0, 1.5, 2.0, 2.5),
}
NOT_KNOWN = ("figure2", "figure10", "figure12")
WHY_NOT_KNOWN = (
    "what it plots is not known to this project, which has the paper's tables and the figures that its text puts into "
    "numbers; nothing is made up in its place. What the text says of memory and of the offline run is under "
    "memory-claims and offline."
)
PICTURE_RATES = (0.25, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = ", ".join((*TABLES, ENGINE, *MEMORY, *FIGURES))
    choices = ("all", *TABLES, ENGINE, *MEMORY, *FIGURES, *NOT_KNOWN)
    add("what", nargs="+", choices=choices, metavar="WHAT", help=f"all, {names}")
    add("--models", nargs="+", metavar="NAME", help="of tables 2, 3 and 8, such as MiniCPM-V-2.6 (default: all three)")
    add("--charts", type=Path, default=Path("build"), metavar="DIR", help="where figures go (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler for the chip is wanted, not the chip
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from epdjax.planning.paper import tables

    wanted = [*TABLES, ENGINE, *MEMORY, *FIGURES, *NOT_KNOWN] if "all" in arguments.what else arguments.what
    for name in wanted:
        if name in NOT_KNOWN:
            print(f"{name.replace('figure', 'figure ')} is not reproduced: {WHY_NOT_KNOWN}", file=sys.stderr)
        elif name in TABLES:
            _table(getattr(tables, name))
        elif name == ENGINE:
            _engine()
        elif name in MEMORY:
            _memory(name.replace("-", "_"), arguments.models)
        else:
            _figure(name, arguments.charts)
    return 2 if set(arguments.what) & set(NOT_KNOWN) else 0


def _table(rows: Callable[[], Iterable["Row"]]) -> None:
    from epdjax.planning.paper.tables import worst_error

    print(f"\n{(rows.__doc__ or '').splitlines()[0]}\n")
    print("| | paper | its stack, simulated | error | this scheduler |")
    print("|---|---|---|---|---|")
    found = []
    for row in rows():
        found.append(row)
        ours = "" if row.ours is None else f"{row.ours:.3g}"
        error = "fitted" if row.fitted else f"{row.error:+.0%}"
        print(f"| {row.what} | {row.paper:.3g} | {row.as_paper:.3g} | {error} | {ours} |", flush=True)
    print(f"\nlargest error of what was not fitted: {worst_error(found):.0%}")


def _engine() -> None:
    from epdjax.planning.paper.engine import aims

    print(f"\n{(aims.__doc__ or '').splitlines()[0]}\n")
    print("| | paper's EPD, or as named | this engine, roofline |\n|---|---|---|")
    for aim in aims():
        print(f"| {aim.what} | {aim.paper:.3g} | {aim.ours:.3g} |", flush=True)


def _memory(name: str, models: list[str] | None) -> None:
    from epdjax.planning.paper import memory

    print(f"\n{memory.HEADER}")
    for row in getattr(memory, name)(**({"models": models} if models else {})):
        print(memory.markdown(row), flush=True)


def _figure(name: str, folder: Path) -> None:
    from epdjax.planning.charts import attainment_chart
    from epdjax.planning.paper.attainment import by_frames, by_pictures

    title, count = FIGURES[name]
    curves = by_frames(count, RATES[name]) if name in RATES else by_pictures(count, PICTURE_RATES)
    points = {curve.system: curve.points for curve in curves}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    attainment_chart(path, points, title)
    print(f"\n{title}: share of requests within the SLO, by requests per second ({path})\n")
    rates = [rate for rate, _ in next(iter(points.values()))]
    print(f"| | {' | '.join(f'{rate:g}' for rate in rates)} |")
    print(f"|---|{'---|' * len(rates)}")
    for system, values in points.items():
        print(f"| {system} | {' | '.join(f'{share:.2f}' for _, share in values)} |")
    print(file=sys.stderr)
