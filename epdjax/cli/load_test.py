"""``load-test``: many clients at once, of all kinds; does every one get what it is due, and is nothing left behind?"""

import argparse
import dataclasses
import json
from pathlib import Path

HELP = (
    "Drive engines with an open-loop Poisson workload of text, pictures and long prompts, with clients that leave and "
    "clients that read slowly. Fails if a request is lost, a block or task is left, or an answer differs from the same "
    "prompt's alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", nargs="+", default=["1EPD", "1E1P1D", "2E1P2D"], metavar="SPEC", help="one engine after another")
    add("--rate", type=float, default=4.0, metavar="R", help="requests per second (default: %(default)s)")
    add("--seconds", type=float, default=60.0, metavar="S", help="for how long they come (default: %(default)s)")
    add("--max-model-len", type=int, default=1024, metavar="N", help="context (default: %(default)s)")
    add("--answer", nargs=2, type=int, default=(4, 32), metavar=("FROM", "TO"), help="tokens (default: 4 32)")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks per instance; few of them make sequences preempt others")
    add("--compare", type=int, default=40, metavar="N", help="answers to compare with those alone (default: 40)")
    add("--seed", type=int, default=0, metavar="N", help="of the workload")
    add("--json", type=Path, metavar="FILE", help="for the numbers")


def run(arguments: argparse.Namespace) -> int:
    """Run the workload on each mesh spec; 0 if all passed."""
    import asyncio

    from rich.console import Console
    from rich.table import Table

    from epdjax import MeshSpec
    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.load import LoadReport, fingerprint
    from epdjax.planning.benchmarks.load import run as drive
    from epdjax.planning.benchmarks.traffic import Mix, poisson
    from epdjax.serving.llm import AsyncLLM

    arrivals = list(poisson(arguments.rate, arguments.seconds, arguments.seed, Mix(answer=tuple(arguments.answer))))
    # The first engine of a process fixes how many virtual devices a CPU has: the largest comes first.
    meshes = sorted(arguments.mesh, key=lambda mesh: -MeshSpec.parse(mesh).devices)
    reports: dict[str, LoadReport] = {}
    for mesh in meshes:
        settings = {"max_model_len": arguments.max_model_len, "kv_blocks": arguments.kv_blocks}
        llm = AsyncLLM(arguments.model or demo_model_path(), mesh, **settings)

        async def serve(llm: AsyncLLM = llm) -> LoadReport:
            try:
                return await drive(llm, arrivals, arguments.compare, arguments.seed)
            finally:
                await llm.shutdown(drain=False)

        reports[mesh] = asyncio.run(serve())
    table = Table(title=f"{len(arrivals)} requests, workload {fingerprint(arrivals)}")
    for column in (
        "mesh",
        "ends",
        "TTFT p50 p99 s",
        "TPOT p50 p99 s",
        "wrong",
        "blocks",
        "tasks",
        "preempted",
        "RSS MiB",
        "passed",
    ):
        table.add_column(column)
    for mesh, report in reports.items():
        ends = ", ".join(f"{count} {end}" for end, count in sorted(report.ends.items()))
        latencies = (f"{a:.3f} {b:.3f}" for a, b in (report.ttft_s, report.tpot_s))
        left = (f"{report.wrong}/{report.compared}", str(report.blocks_held), str(report.tasks_left))
        grown = f"{report.rss_mib[0]:.0f} -> {report.rss_mib[1]:.0f}"
        table.add_row(mesh, ends, *latencies, *left, str(report.preemptions), grown, "yes" if report.passed else "NO")
    Console().print(table)
    if arguments.json is not None:
        numbers = {mesh: dataclasses.asdict(report) for mesh, report in reports.items()}
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if all(report.passed for report in reports.values()) else 1
