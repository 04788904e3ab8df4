"""``bench-pace``: how evenly running answers go on while others prefill long prompts and encode large pictures."""

import argparse
from pathlib import Path

HELP = (
    "Measure the time between the tokens of running answers, alone and while others prefill long prompts and encode "
    "large pictures: on one device with whole prompts in one step, there with prompts in chunks, and with the stages "
    "apart. A model with random weights is made for it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: random weights, made for the occasion)")
    add("--layout", nargs="+", metavar="MESH:CHUNK", help="default: 1EPD:PROMPT 1EPD:512 1E1P1D:512")
    add("--streams", type=int, default=4, metavar="N", help="answers that run (default: %(default)s)")
    add("--prompt", type=int, default=8192, metavar="N", help="tokens of others' prompts (default: %(default)s)")
    add("--tiles", type=int, default=12, metavar="N", help="of others' pictures, 0: none (default: %(default)s)")
    add("--seconds", type=float, default=30.0, metavar="S", help="of each part of a run (default: %(default)s)")
    add("--repeats", type=int, default=1, metavar="N", help="runs of each layout (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, a layout at a time."""
    import asyncio
    import sys
    import tempfile

    from epdjax.cli.progress import CompileProgress
    from epdjax.mesh.devices import resolve_mesh
    from epdjax.mesh.spec import MeshSpec
    from epdjax.models.random_checkpoint import write_random_internvl
    from epdjax.planning.benchmarks.pace import SIZE, Layout, Pace, make_engine, measure_pace

    whole = -(-arguments.prompt // 512) * 512
    try:
        layouts = [Layout("1EPD", whole), Layout("1EPD", 512), Layout("1E1P1D", 512)]
        if arguments.layout:
            layouts = [
                Layout(mesh, int(chunk)) for mesh, _, chunk in (text.partition(":") for text in arguments.layout)
            ]
        # The first use of JAX fixes how many virtual devices a CPU has: the largest mesh comes first.
        layouts.sort(key=lambda layout: -MeshSpec.parse(layout.mesh).devices)
        resolve_mesh(layouts[0].mesh)
    except ValueError as error:
        print(f"--layout takes a mesh spec and prompt tokens per step, such as 1EPD:512: {error}", file=sys.stderr)
        return 2

    async def measure(folder: Path, layout: Layout) -> list[Pace]:
        with CompileProgress() as progress:
            llm = make_engine(folder, layout, arguments.prompt, arguments.streams, progress)
        settings = (arguments.streams, arguments.seconds, arguments.prompt, arguments.tiles)
        try:
            return [await measure_pace(llm, *settings) for _ in range(arguments.repeats)]
        finally:
            await llm.shutdown(drain=False)

    print(
        "| mesh | chunk | alone p50, p99 ms | beside others p50, p99, longest ms | prompts, s each | pictures, s each |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.model or Path(made)
        if not arguments.model:
            write_random_internvl(folder, SIZE)
        for layout in layouts:
            for pace in asyncio.run(measure(folder, layout)):
                print(_row(layout.mesh, layout.max_chunk, pace), flush=True)
    return 0


def _row(mesh: str, chunk: int, pace: object) -> str:
    alone, beside = pace.alone, pace.beside  # type: ignore[attr-defined]
    gaps = f"{alone.p50 * 1e3:.1f}, {alone.p99 * 1e3:.1f}"
    gaps += f" | {beside.p50 * 1e3:.1f}, {beside.p99 * 1e3:.1f}, {beside.longest * 1e3:.0f}"
    prompts, pictures = pace.prompts, pace.pictures  # type: ignore[attr-defined]
    seconds = (pace.prompt_s, pace.picture_s)  # type: ignore[attr-defined]
    return f"| `{mesh}` | {chunk} | {gaps} | {prompts}, {seconds[0]:.2f} | {pictures}, {seconds[1]:.2f} |"
