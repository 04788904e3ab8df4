"""``bench-roles``: the EPD paper's experiment on role switching, by the clock or live, and what switches take."""

import argparse
from pathlib import Path

HELP = (
    "Role switching: the EPD paper's experiment (its table 6) with this scheduler and controller under a virtual "
    "clock; with --live scaled down on this machine; with --times what switches of a model take here, step by step."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, default=5, metavar="N", help="runs of the virtual clock (default: %(default)s)")
    add("--live", action="store_true", help="on virtual devices, with the demo model")
    add("--rate", type=float, default=8.0, metavar="R", help="requests per second of --live (default: %(default)s)")
    add("--answer", type=int, default=150, metavar="N", help="tokens of the long answers of --live (default: 150)")
    add("--requests", type=int, default=160, metavar="N", help="of --live (default: %(default)s)")
    add("--times", action="store_true", help="offload, migrate and onload of each kind of switch")
    add("--model", type=Path, metavar="DIR", help="checkpoint folder (default: the bundled demo model)")
    add("--billion", type=float, metavar="X", help="instead: so many billion random parameters, about")
    add("--repeats", type=int, default=3, metavar="N", help="of each kind of switch, after a first (default: 3)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.live:
        return _live(arguments)
    if arguments.times:
        return _times(arguments)
    return _virtual(arguments.seeds)


def _virtual(seeds: int) -> int:
    import statistics

    from epdjax.planning.paper import role_switching as experiment

    columns = (f"{who}, without | with | times" for who in ("paper", "its stack", "this scheduler"))
    print(f"| | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    systems = (experiment.AS_PAPER, experiment.OURS)
    runs = {
        (system, on): [experiment.run(system, switching=on, seed=seed) for seed in range(seeds)]
        for system in systems
        for on in (False, True)
    }
    for what in ("latency_s", "ttft_s", "tpot_s"):
        pairs = [(experiment.PAPER_OFF[what], experiment.PAPER_ON[what])]
        for system in systems:
            off, on = (statistics.fmean(getattr(o, what) for o in runs[system, on]) for on in (False, True))
            pairs.append((off, on))
        cells = (f"{a:.3g} | {b:.3g} | {a / b:.2f}" for a, b in pairs)
        print(f"| {what.replace('_s', ', s')} | {' | '.join(cells)} |")
    for system in systems:
        print("\nits stack:" if system.as_paper else "\nthis scheduler:")
        for seed, outcome in enumerate(runs[system, True]):
            steps = ", ".join(f"{s.decided:.0f} s -> {s.mesh}" for s in outcome.switches)
            print(f"seed {seed}: {system.mesh}, {steps}")
    return 0


def _live(arguments: argparse.Namespace) -> int:
    from epdjax.cli.progress import CompileProgress
    from epdjax.demo import demo_model_path
    from epdjax.planning.benchmarks.role_switching_live import run_live

    with CompileProgress() as progress:
        for switching in ("off", "auto"):
            load = (arguments.requests, arguments.rate, arguments.answer)
            outcome = run_live(arguments.model or demo_model_path(), switching, *load, progress)
            print(f"{switching}: {outcome}", flush=True)
    return 0


def _times(arguments: argparse.Namespace) -> int:
    import tempfile

    from epdjax.demo import demo_model_path
    from epdjax.mesh.devices import resolve_mesh
    from epdjax.models.random_checkpoint import InternVLSize, write_random_internvl
    from epdjax.planning.benchmarks.role_switching_live import TIMED, switch_times

    resolve_mesh(TIMED)  # the first use of JAX fixes how many virtual devices a CPU has
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.model or demo_model_path()
        if arguments.billion:
            folder = Path(made)
            layers = max(1, round(arguments.billion * 1e9 / 6e7))
            size = InternVLSize(text_width=2048, text_heads=16, text_mlp=5632, text_layers=layers)
            write_random_internvl(folder, size)
        print("| switch | offload ms | migrate ms | onload ms | parameters moved MiB | prepared s |")
        print("|---|---|---|---|---|---|")
        for kind, times in switch_times(folder, arguments.repeats).items():
            ms = [f"{seconds * 1e3:.1f}" for seconds in (times.offload_s, times.migrate_s, times.onload_s)]
            print(
                f"| {kind} | {' | '.join(ms)} | {times.moved_bytes / 2**20:.0f} | {times.prepare_s:.1f} |", flush=True
            )
    return 0
