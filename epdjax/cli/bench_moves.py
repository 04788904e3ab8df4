"""``bench-moves``: KV moves from prefill to decode instances: bytes, time, and the share of it that is hidden."""

import argparse
from pathlib import Path

HELP = "Measure KV moves: bytes, seconds, how much moves while its prompt is still prefilled, and what is waited for."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", default="1E1P1D", metavar="SPEC", help="which devices do what (default: %(default)s)")
    add("--max-model-len", type=int, default=1024, metavar="N", help="context (default: %(default)s)")
    add("--max-chunk", type=int, default=128, metavar="N", help="prompt tokens per step (default: %(default)s)")
    add("--words", type=int, nargs="+", default=[100, 300, 700], metavar="N", help="of the prompts")
    add(
        "--at-once", type=int, default=4, metavar="N", help="prompts together, besides one alone (default: %(default)s)"
    )
    add("--repeats", type=int, default=5, metavar="N", help="of each (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from rich.console import Console
    from rich.table import Table

    from epdjax import LLM
    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.kv_moves import measure

    sizes = {"max_model_len": arguments.max_model_len, "max_chunk": arguments.max_chunk}
    with LLM(arguments.model or demo_model_path(), arguments.mesh, **sizes) as llm:
        costs = [
            measure(llm, words, at_once, arguments.repeats)
            for words in arguments.words
            for at_once in dict.fromkeys((1, arguments.at_once))
        ]
    table = Table(title=f"KV moves on {arguments.mesh}, chunks of {arguments.max_chunk} tokens")
    for column in ("prompt tokens", "at once", "moves", "MiB", "early", "ms a move", "waited ms", "all done ms"):
        table.add_column(column)
    for c in costs:
        shown = (f"{c.bytes / 2**20:.2f}", f"{c.early:.0%}", f"{c.seconds * 1e3:.2f}", f"{c.exposed_s * 1e3:.2f}")
        table.add_row(str(c.tokens), str(c.at_once), str(c.moves), *shown, f"{c.all_s * 1e3:.1f}")
    Console().print(table)
    return 0
