"""``bench-cache``: time to the first token of what is new and of what has been seen before."""

import argparse
from pathlib import Path

HELP = "Measure what the caches by content save: times to the first token, new against seen before, in one run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", default="1E1P1D", metavar="SPEC", help="which devices do what (default: %(default)s)")
    add("--max-model-len", type=int, default=1024, metavar="N", help="context (default: %(default)s)")
    add("--side", type=int, default=600, metavar="N", help="of the pictures, pixels (default: %(default)s)")
    add("--words", type=int, default=300, metavar="N", help="of a shared beginning (default: %(default)s)")
    add("--crowd", type=int, default=50, metavar="N", help="that ask about one picture at once (default: %(default)s)")
    add("--repeats", type=int, default=9, metavar="N", help="of each case (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from rich.console import Console
    from rich.table import Table

    from epdjax import LLM
    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.cache_effects import crowd, measure

    model = arguments.model or demo_model_path()
    with LLM(model, arguments.mesh, max_model_len=arguments.max_model_len) as llm:
        effects = measure(llm, arguments.side, arguments.words, arguments.repeats)
        many = crowd(llm, arguments.crowd, arguments.side)
    table = Table(title=f"time to the first token on {arguments.mesh}, medians of {arguments.repeats}")
    for column in ("case", "new ms", "seen ms", "prompt tokens", "of them cached"):
        table.add_column(column)
    for e in effects:
        table.add_row(
            e.what, f"{e.new_s * 1e3:.1f}", f"{e.seen_s * 1e3:.1f}", str(e.prompt_tokens), str(e.cached_tokens)
        )
    Console().print(table)
    print(
        f"{many.requests} different questions about one picture of {many.units} units at once: {many.encoded} units "
        f"encoded, {many.seconds * 1e3:.0f} ms until all had their first token ({many.alone_s * 1e3:.0f} ms for one)"
    )
    return 0
