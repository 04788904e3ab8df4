"""``plan``: which mesh and settings serve a workload best, found by simulation; the answer is a serve command."""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epdjax.planning.allocator import Plan
    from epdjax.planning.costs import HostCosts
    from epdjax.planning.machine import Machine
    from epdjax.planning.simulator import Seconds
    from epdjax.planning.space import Choice, Space
    from epdjax.planning.trial_runs import TrialRuns

HELP = (
    "Search mesh specs and settings for the deployment that serves a workload best on so many devices of a chip, under "
    "an SLO, with the real scheduler under a virtual clock. Prints the serve command. It may well be a monolith. Needs "
    "the plan extra."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="preset, such as MiniCPM-V-2.6, or checkpoint folder")
    add("--chip", default="a100-80g", help="a100-80g, h100-80g, h200, v5e, v5p or v6e (default: %(default)s)")
    add("--devices", type=int, nargs="+", default=[8], metavar="N", help="how many may be used (default: 8)")
    add("--tensor", type=int, nargs="+", default=[1], metavar="N", help="devices per language model (default: 1)")
    add(
        "--workload", default="pictures-4", metavar="NAME|FILE", help="by name, or a JSONL trace (default: %(default)s)"
    )
    add("--slo", default="2.6/0.04", metavar="TTFT/TPOT", help="seconds (default: %(default)s)")
    add("--objective", default="goodput", help="goodput, or at --rate: attainment, throughput, ttft, tpot or latency")
    add("--rate", type=float, metavar="R", help="requests per second of other objectives than goodput")
    add(
        "--beta", type=float, default=0.0, metavar="X", help="price of a device, in units of the objective (default: 0)"
    )
    add("--costs", type=Path, metavar="FILE", help="a profile (default: a roofline of the chip)")
    add(
        "--megapixel-s",
        type=float,
        metavar="S",
        help="that the host takes for a megapixel of a picture (default: as profiled; with a roofline nothing)",
    )
    add(
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="requests the host prepares at a time, beside --megapixel-s (default: 4)",
    )
    add("--requests", type=int, default=100, metavar="N", help="of each simulation (default: %(default)s)")
    add("--evaluations", type=int, default=200, metavar="N", help="deployments looked at (default: %(default)s)")
    add("--seed", type=int, default=0, help="of workload and search (default: %(default)s)")
    add("--chart", type=Path, metavar="FILE", help="attainment against rate, with baselines on as many devices")
    space = parser.add_argument_group("what is searched, as serve takes it")
    add = space.add_argument
    add("--max-units", type=int, nargs="+", default=[2, 8], metavar="N", help="(default: 2 8)")
    add("--max-chunk", type=int, nargs="+", default=[512, 2048], metavar="N", help="(default: 512 2048)")
    add("--max-seqs", type=int, nargs="+", default=[16, 64], metavar="N", help="(default: 16 64)")
    add("--order", nargs="+", default=["fcfs"], metavar="NAME", help="(default: fcfs)")
    add("--assignment", nargs="+", default=["cache-aware"], metavar="NAME", help="(default: cache-aware)")
    add("--irp", nargs="+", choices=("on", "off"), default=["on"], help="(default: on)")
    add("--max-model-len", type=int, metavar="N", help="longest prompt and answer together, tokens (default: 8192)")
    add("--memory-share", type=float, default=0.9, metavar="X", help="of device memory to use (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Search and print."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler for the chip is wanted, not the chip
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        return _plan(arguments)
    except (ValueError, OSError) as error:
        print(f"no plan: {error}", file=sys.stderr)
        return 2


def _plan(arguments: argparse.Namespace) -> int:
    from epdjax.planning.allocator import ATTAINMENT, Allocator, Goodput, metric_at
    from epdjax.planning.capacity import Capacity
    from epdjax.planning.memory import PlannedModel
    from epdjax.planning.space import Space
    from epdjax.planning.trial_runs import TrialRuns
    from epdjax.serving.config import EngineConfig

    model = PlannedModel.of(arguments.model)
    base = EngineConfig(
        model=arguments.model, max_model_len=arguments.max_model_len, memory_share=arguments.memory_share
    )
    capacity = Capacity(model.family, model.config, base, arguments.chip, model.dtype.name)
    listed = {name: tuple(getattr(arguments, name)) for name in ("devices", "tensor", "order", "assignment")}
    sizes = {name: tuple(sorted(getattr(arguments, name))) for name in ("max_units", "max_chunk", "max_seqs")}
    space = Space(**listed, **sizes, irp=tuple(value == "on" for value in arguments.irp))
    if arguments.objective != "goodput" and not arguments.rate:
        raise ValueError(f"the objective {arguments.objective} needs --rate")
    seconds, machine, host = _costs(arguments, model, capacity)
    runs = TrialRuns(
        model.config,
        _workload(arguments.workload),
        _slo(arguments.slo),
        seconds,
        capacity.scheduling,
        capacity.sizes,
        machine,
        host,
        arguments.requests,
        arguments.seed,
    )
    goodput = arguments.objective == "goodput"
    objective = (
        Goodput(functools.partial(runs.holds, attainment=ATTAINMENT))
        if goodput
        else metric_at(arguments.objective, runs, arguments.rate)
    )
    allocator = Allocator(objective, capacity.sizes, arguments.beta)
    plan = allocator.search(space, arguments.evaluations, arguments.seed)
    _print(arguments, plan, space)
    baselines = {name: allocator.score(choice) for name, choice in _baselines(plan.best.choice).items()}
    print("\non as many devices:")
    for name, score in baselines.items():
        print(f"  {name}: {score.why or _shown(arguments, score.metric)}")
    if arguments.chart:
        choices = {name: score.choice for name, score in baselines.items() if not score.why}
        _draw(arguments, {f"chosen: {plan.best.choice.mesh}": plan.best.choice, **choices}, runs, plan.best.metric)
    return 0


def _workload(name: str) -> Any:
    from epdjax.planning.traces import read_trace
    from epdjax.planning.workloads import workload

    return read_trace(name) if Path(name).is_file() else workload(name)


def _slo(text: str) -> Any:
    from epdjax.planning.metrics import SLO

    try:
        ttft, tpot = (float(part) for part in text.split("/"))
    except ValueError:
        ttft = tpot = 0.0
    if not (ttft > 0 and tpot > 0):
        raise ValueError(f"--slo takes seconds to the first token and between tokens, such as 2.6/0.04, not {text!r}")
    return SLO(ttft, tpot)


def _costs(
    arguments: argparse.Namespace, model: Any, capacity: Any
) -> tuple[Callable[["Choice"], "Seconds"], "Machine", "HostCosts | None"]:
    """What work takes under a choice, what deployments run on, and what preparing requests takes."""
    from epdjax.mesh.chips import chip
    from epdjax.planning.costs import HostCosts, ProfiledCosts, Roofline
    from epdjax.planning.machine import IDEAL

    given = arguments.megapixel_s
    host = HostCosts(given, workers=arguments.workers) if given is not None else None
    if arguments.costs:
        profile = ProfiledCosts.load(arguments.costs)
        profile.check(model.config, arguments.chip)
        here = functools.partial(dataclasses.replace, profile)
        return (
            lambda choice: here(buckets=capacity.scheduling(choice).buckets),
            profile.machine,
            host or profile.preprocessing,
        )

    @functools.cache
    def roofline(alike: "Choice") -> Roofline:
        buckets = capacity.scheduling(alike).buckets
        return Roofline.of(model.family, model.config, chip(arguments.chip), dtype=model.dtype.name, buckets=buckets)

    # Steps are the same for all meshes; what was found for one holds for the others.
    return lambda choice: roofline(dataclasses.replace(choice, mesh="1EPD")), IDEAL, host


def _baselines(best: "Choice") -> dict[str, "Choice"]:
    """The same settings with other ways to divide as many devices."""
    from epdjax.mesh.spec import auto_spec

    devices = best.devices
    meshes = {"monoliths": f"{devices}EPD"}
    if devices > 1:
        meshes["encode and prefill together"] = f"{devices - 1}EP1D"
    meshes["split as serve does"] = str(auto_spec(devices))
    return {f"{name} ({mesh})": dataclasses.replace(best, mesh=mesh) for name, mesh in meshes.items()}


def _print(arguments: argparse.Namespace, plan: "Plan", space: "Space") -> None:
    best, second = plan.best, plan.runner_up
    looked = sum(not score.why for score in plan.scores)
    print(f"{looked} of {len(space)} deployments simulated, {len(plan.scores) - looked} do not fit")
    print(f"best: {best.choice.mesh}, {_shown(arguments, best.metric)}")
    if second is not None:
        behind = (best.value - second.value) / abs(best.value) if best.value else 0.0
        print(f"next: {second.choice.mesh}, {_shown(arguments, second.metric)}, {behind:.1%} behind")
    for name, loss in sorted(plan.sensitivity().items(), key=lambda item: -item[1]):
        print(f"  another {name.replace('_', ' ')}: {loss:.1%} worse at best")
    model_len = f" --max-model-len {arguments.max_model_len}" if arguments.max_model_len else ""
    print(f"\npython scripts/serve.py --model {arguments.model} {best.choice.flags}{model_len}")


def _shown(arguments: argparse.Namespace, metric: float) -> str:
    """A figure as it is read; to the search less time is more."""
    units = {"goodput": "requests/s", "throughput": "tokens/s", "attainment": "of the requests within the SLO"}
    return f"{abs(metric):.3g} {units.get(arguments.objective, f's {arguments.objective}')}"


def _draw(arguments: argparse.Namespace, choices: dict[str, "Choice"], runs: "TrialRuns", goodput: float) -> None:
    from epdjax.planning.charts import attainment_chart

    middle = goodput if arguments.objective == "goodput" and goodput > 0 else arguments.rate or 1.0
    rates: Sequence[float] = [middle * factor for factor in (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)]
    curves = {name: [(rate, runs(choice, rate).attainment) for rate in rates] for name, choice in choices.items()}
    attainment_chart(arguments.chart, curves, f"{arguments.model}, {arguments.workload}, {arguments.chip}")
    print(f"\nattainment against rate: {arguments.chart}")
