"""The EPD paper's curves of SLO attainment against rate (its figures 5, 7 and 8), simulated with its stack's times."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from epdjax.planning.metrics import SLO
from epdjax.planning.paper.latency import System, frames, pictures, run
from epdjax.planning.paper.stack import PaperStack
from epdjax.planning.paper.tables import CHOSEN, DISTSERVE, MONOLITH, SLOS

SYSTEMS = {
    "vLLM-like": System(MONOLITH),
    "DistServe": System(DISTSERVE),
    "EPD": System(CHOSEN),
    "epdjax": System(CHOSEN, as_paper=False, units=8),
}
VIDEO_SLOS = {8: SLO(5.60, 0.06), 64: SLO(3.1, 0.025)}  # NextQA, Video-MME


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (requests per second, share of requests that met the SLO) of a system."""

    system: str
    points: tuple[tuple[float, float], ...]


def by_pictures(count: int, rates: Sequence[float], seeds: int = 3) -> Iterator[Curve]:
    """Requests with `count` 4K pictures each."""
    stack, slo = PaperStack.calibrated(), SLOS[count]
    for name, system in SYSTEMS.items():
        runs = (
            (rate, [run(system, stack, pictures(system, count, rate, seed=seed), slo) for seed in range(seeds)])
            for rate in rates
        )
        yield Curve(name, tuple((rate, statistics.fmean(r.attainment for r in some)) for rate, some in runs))


def by_frames(count: int, rates: Sequence[float], seeds: int = 3) -> Iterator[Curve]:
    """Requests with a video of `count` frames each, one of `VIDEO_SLOS`."""
    stack, slo = PaperStack.for_videos(), VIDEO_SLOS[count]
    for name, system in SYSTEMS.items():
        runs = (
            (rate, [run(system, stack, frames(system, count, rate, seed=seed), slo) for seed in range(seeds)])
            for rate in rates
        )
        yield Curve(name, tuple((rate, statistics.fmean(r.attainment for r in some)) for rate, some in runs))
