"""``bench-scheduler``: what an event costs the scheduler, and how much more while more requests wait."""

import argparse

HELP = (
    "Measure what a role switch, a lost instance, clients that leave and finding the next work cost the scheduler "
    "while few and while many requests wait: in milliseconds, and in bytecodes, which come out the same each time."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--requests", type=int, nargs=2, default=[100, 1000], metavar="N", help="few and many (default: 100 1000)")
    add("--repeats", type=int, default=3, metavar="N", help="of each time; the least counts (default: %(default)s)")
    add("--count", action="store_true", help="count bytecodes as well, which takes a hundred times as long")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from epdjax.planning.benchmarks.crowds import CROWDS, EVENTS, Meter, bytecodes, cost_of, cost_of_next_work, seconds

    few, many = arguments.requests
    meters: dict[str, tuple[Meter, float, int]] = {"ms": (seconds, 1e3, arguments.repeats)}
    if arguments.count:
        meters["kilo-bytecodes"] = (bytecodes, 1e-3, 1)
    columns = [f"{unit}, {few} | {unit}, {many} | ratio" for unit in meters]
    print(f"| who waits | event | {' | '.join(columns)} |")
    print(f"|---|---|{'---|' * 3 * len(meters)}")
    for crowd, make in CROWDS.items():
        for event in (*EVENTS, None):
            cells = []
            for meter, unit, repeats in meters.values():
                a, b = (
                    min(
                        cost_of_next_work(make(n), meter) if event is None else cost_of(event, make(n), meter)
                        for _ in range(repeats)
                    )
                    for n in (few, many)
                )
                cells.append(f"{a * unit:.2f} | {b * unit:.2f} | {b / a:.1f}")
            print(f"| {crowd} | {event or 'a step has ended: the next work'} | {' | '.join(cells)} |", flush=True)
    return 0
