"""``bench-startup``: how many programs there are, and how long a start takes, cold and warm, full and trimmed."""

import argparse
from pathlib import Path

HELP = (
    "Start engines in processes of their own with an empty compilation cache and with a filled one, with all compiled "
    "shapes and with trimmed ones: number of programs and seconds."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--mesh", nargs="+", default=["1EPD", "2E1P1D"], metavar="SPEC", help="which devices do what")
    add("--buckets", nargs="+", default=["full", "trimmed"], choices=("full", "trimmed"), help="compiled shapes")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together, tokens")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, a mesh spec at a time."""
    import tempfile

    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.startup import measure_start

    print("| mesh | shapes | programs | cold s | warm s | of them from the cache |")
    print("|---|---|---|---|---|---|")
    for mesh in arguments.mesh:
        for buckets in arguments.buckets:
            with tempfile.TemporaryDirectory() as cache:
                model = arguments.model or demo_model_path()
                cold, warm = (
                    measure_start(model, mesh, buckets, Path(cache), arguments.max_model_len) for _ in range(2)
                )
            times = f"{cold.seconds:.1f} | {warm.seconds:.1f} | {warm.cached}"
            print(f"| `{mesh}` | {buckets} | {cold.programs} | {times} |", flush=True)
    return 0
