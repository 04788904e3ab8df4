"""What this engine should do where the paper ran: its scheduler and its shapes, with a roofline of an A100 at the
efficiencies it aims at. Nothing of the host is in it."""

import dataclasses
import functools
import statistics
from collections.abc import Iterator

from epdjax.mesh.chips import chip
from epdjax.models.presets import preset
from epdjax.planning.allocator import ATTAINMENT, Goodput
from epdjax.planning.costs import Roofline
from epdjax.planning.metrics import SLO, Report
from epdjax.planning.paper.latency import LONGEST, REQUESTS, SIZES
from epdjax.planning.paper.tables import (
    CHOSEN,
    DISTSERVE,
    FRAMES,
    GOODPUT_6,
    MONOLITH,
    PICTURES,
    SLOS,
    TABLE_1,
    TABLE_4,
)
from epdjax.planning.simulator import Simulation
from epdjax.planning.space import Choice
from epdjax.planning.workloads import request_specs, workload
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import scheduling_for

MODEL, CHIP = "MiniCPM-V-2.6", "a100-80g"
SEEDS = 3


@functools.cache
def _engine() -> tuple[SchedulerConfig, Roofline]:
    family, model = preset(MODEL)
    config = EngineConfig("planned", max_model_len=LONGEST, max_units=8, max_chunk=1024, max_seqs=SIZES.slots)
    scheduling = scheduling_for(config, model)
    return scheduling, Roofline.of(family, model, chip(CHIP), dtype="float16", buckets=scheduling.buckets)


@dataclasses.dataclass(frozen=True)
class Aim:
    """A figure of the paper, and what this engine should do there."""

    what: str
    paper: float
    ours: float


def aims() -> Iterator[Aim]:
    """Tables 1, 4 and 5 as this engine should run them on A100s."""
    for mesh, (name, values) in TABLE_1.items():
        for count, paper in zip(FRAMES, values, strict=True):
            ours = ttft_s(mesh, f"video-mme-{count}", 1.0)
            yield Aim(f"TTFT s, {name} {mesh}, {count} frames, 1 request/s", paper, ours)
    for count, paper in zip(PICTURES, TABLE_4[True], strict=True):
        ours = ttft_s(CHOSEN, f"pictures-{count}", 0.25)
        yield Aim(f"TTFT s, {CHOSEN}, {count} pictures, 0.25 requests/s", paper, ours)
    for mesh in (CHOSEN, DISTSERVE, MONOLITH, "4E4PD"):
        yield Aim(f"goodput requests/s, {mesh}, 6 pictures", GOODPUT_6, goodput(mesh, "pictures-6", SLOS[6]))


def run(mesh: str, name: str, rate: float, slo: SLO | None = None, seed: int = 0) -> Report:
    """A workload by name, as many requests as the paper's."""
    scheduling, roofline = _engine()
    asks = workload(name).asks(rate, REQUESTS, seed)
    arrivals = request_specs(asks, preset(MODEL)[1], scheduling.buckets.unit_sizes)
    simulation = Simulation(mesh, scheduling, SIZES.spec, roofline)
    simulation.run(arrivals)
    return simulation.report(slo)


def ttft_s(mesh: str, name: str, rate: float) -> float:
    """Mean time to the first token over a few seeds."""
    return statistics.fmean(run(mesh, name, rate, seed=seed).ttft.mean for seed in range(SEEDS))


def goodput(mesh: str, name: str, slo: SLO) -> float:
    """The highest rate at which `ATTAINMENT` of the requests meet the SLO."""

    def holds(_: object, rate: float) -> bool:
        return statistics.fmean(run(mesh, name, rate, slo, seed).attainment for seed in range(SEEDS)) >= ATTAINMENT

    return Goodput(holds)(Choice(mesh))
