"""``bench-overhead``: what the engine and its scheduler cost beside the compiled steps."""

import argparse

HELP = (
    "Measure what the engine costs beside the compiled steps: decode steps in the engine against the bare program, "
    "pauses of the garbage collector, and the scheduler's time per request and per step, with devices that take none."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[1, 16, 64], metavar="N", help="sequences a step (default: 1 16 64)")
    add("--tokens", type=int, default=128, metavar="N", help="of each answer (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="of each batch, after a first (default: %(default)s)")
    add("--freeze", action="store_true", help="take what start-up made out of the garbage collector's view")
    add("--requests", type=int, default=500, metavar="N", help="that the scheduler is driven over (default: 500)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    import gc
    import tempfile
    from pathlib import Path

    from epdjax.cli.progress import CompileProgress
    from epdjax.models.random_checkpoint import write_random_internvl
    from epdjax.planning.benchmarks.overhead import PROMPT, SIZE, measure_decode, measure_scheduler
    from epdjax.serving.llm import LLM

    with tempfile.TemporaryDirectory() as made:
        write_random_internvl(Path(made), SIZE)
        with CompileProgress() as progress:
            longest, most = PROMPT + arguments.tokens + 16, max(arguments.batch)
            blocks = most * -(-longest // 16)
            settings = {"max_model_len": longest, "max_seqs": most, "max_chunk": 64, "kv_blocks": blocks}
            llm = LLM(made, "1EPD", progress=progress, **settings)
    if arguments.freeze:
        gc.collect()
        gc.freeze()
    print("| sequences | engine ms a step | bare ms | ratio | collector us a step | longest pause ms |")
    print("|---|---|---|---|---|---|")
    with llm:
        for batch in arguments.batch:
            c = measure_decode(llm, batch, arguments.tokens, arguments.repeats)
            times = f"{c.engine_s * 1e3:.2f} | {c.bare_s * 1e3:.2f} | {c.ratio:.3f}"
            print(f"| {batch} | {times} | {c.gc_s * 1e6:.0f} | {c.gc_longest_s * 1e3:.1f} |", flush=True)
    print("\n| instances | scheduler us per request | us per work | works |")
    print("|---|---|---|---|")
    for roles in (("EPD",), ("E", "P", "D")):
        s = measure_scheduler(roles, arguments.requests)
        print(f"| {', '.join(roles)} | {s.request_s * 1e6:.0f} | {s.step_s * 1e6:.0f} | {s.works} |", flush=True)
    return 0
