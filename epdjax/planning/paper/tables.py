"""The EPD paper's latency tables beside simulations: what the paper states, its stack simulated, and this scheduler."""

import dataclasses
import functools
import math
import random
import statistics
from collections.abc import Callable, Iterator

from epdjax.planning.allocator import Allocator
from epdjax.planning.metrics import SLO
from epdjax.planning.paper import role_switching as switching
from epdjax.planning.paper.latency import System, frames, goodput, pictures, run
from epdjax.planning.paper.stack import PaperStack
from epdjax.planning.space import Choice, Space

SEEDS = 5
DEFAULT, CHOSEN, DISTSERVE, MONOLITH = "5E2P1D", "6E1P1D", "7EP1D", "8EPD"
SLOS = {2: SLO(1.40, 0.04), 4: SLO(2.60, 0.04), 6: SLO(3.90, 0.06), 8: SLO(5.10, 0.06)}  # table 9, MiniCPM-V 2.6


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of the paper.

    Attributes:
        what: it says. paper: as stated. as_paper: of its stack, simulated. ours: of this scheduler with the same times;
            None where there is nothing to compare.
        fitted: it was used to calibrate the stack.
    """

    table: str
    what: str
    paper: float
    as_paper: float
    ours: float | None = None
    fitted: bool = False

    @property
    def error(self) -> float:
        """Of the simulation, as a share of what the paper states."""
        return self.as_paper / self.paper - 1


# Seconds to the first token in table 1, by deployment and frames, and in table 4, with and without IRP, by pictures.
FRAMES, PICTURES = (8, 16, 32, 64), (2, 4, 6, 8)
TABLE_1 = {
    MONOLITH: ("vLLM-like", (0.42, 0.82, 1.59, 3.11)),
    DISTSERVE: ("DistServe", (0.42, 0.81, 1.54, 3.08)),
    CHOSEN: ("EPD", (0.24, 0.30, 0.49, 1.00)),
}
TABLE_4 = {True: (0.92, 1.02, 1.14, 1.74), False: (1.46, 2.47, 3.37, 4.27)}
GOODPUT_6 = 1.25  # requests a second with six pictures, in table 5


def table1() -> Iterator[Row]:
    """Mean TTFT of questions about videos at 1 request a second, by frames."""
    stack = PaperStack.for_videos()
    for mesh, (name, values) in TABLE_1.items():
        for count, paper in zip(FRAMES, values, strict=True):

            def mean(as_paper: bool, mesh: str = mesh, count: int = count) -> float:
                system = System(mesh, as_paper, units=1 if as_paper else 8)
                return _mean(lambda seed: run(system, stack, frames(system, count, 1.0, seed=seed)).ttft.mean)

            fitted = mesh == DISTSERVE and count == 8
            yield Row("1", f"TTFT s, {name} {mesh}, {count} frames", paper, mean(True), mean(False), fitted)


def table4() -> Iterator[Row]:
    """Mean TTFT at 0.25 requests a second, with and without IRP, by pictures."""
    stack = PaperStack.calibrated()
    for irp, values in TABLE_4.items():
        for count, paper in zip(PICTURES, values, strict=True):

            def mean(as_paper: bool, irp: bool = irp, count: int = count) -> float:
                system = System(CHOSEN, as_paper, irp or not as_paper, units=1 if as_paper else 8)
                return _mean(lambda seed: run(system, stack, pictures(system, count, 0.25, seed=seed)).ttft.mean)

            what = f"TTFT s, {CHOSEN}, {count} pictures, {'with' if irp else 'without'} IRP"
            yield Row("4", what, paper, mean(True), mean(False) if irp else None, irp and count == 2)


def table5() -> Iterator[Row]:
    """Goodput with six pictures: the optimiser's choice, and the mean of ten random deployments of eight devices."""
    stack, slo = PaperStack.calibrated(), SLOS[6]
    rate, best = goodput(System(CHOSEN, units=2), stack, 6, slo)
    ours_rate, ours = goodput(System(CHOSEN, as_paper=False, units=8), stack, 6, slo)
    yield Row("5", f"goodput requests/s, {CHOSEN}, the paper's choice", GOODPUT_6, rate, ours_rate)
    yield Row("5", "TTFT s at it", 2.12, best.ttft.mean, ours.ttft.mean)
    yield Row("5", "TPOT s at it", 0.031, best.tpot.mean, ours.tpot.mean)
    rates = [goodput(system, stack, 6, slo, seeds=1)[0] for system in random_systems(10)]
    mean = statistics.fmean(rates)
    yield Row("5", "goodput requests/s, mean of ten random deployments", 0.56, mean)
    choice, ours_best = best_of_eight(stack, 6, slo)
    yield Row("5", f"gain over them; ours with {choice}", GOODPUT_6 / 0.56, rate / mean, ours_best / mean)


def best_of_eight(stack: PaperStack, count: int, slo: SLO) -> tuple[str, float]:
    """The mesh of eight devices with the highest goodput, and that."""
    space = Space(devices=(8,), max_units=(8,), max_chunk=(1024,), max_seqs=(128,))

    def rate(choice: Choice) -> float:
        return goodput(System(choice.mesh, as_paper=False, units=8), stack, count, slo, seeds=1)[0]

    best = Allocator(rate, lambda _: None).exhaustive(space).best
    return best.choice.mesh, best.value


def random_systems(count: int, seed: int = 0) -> Iterator[System]:
    """Deployments of eight devices at random, stages apart, IRP or not."""
    rng = random.Random(seed)
    for _ in range(count):
        first, second = sorted(rng.sample(range(1, 8), 2))
        mesh = f"{first}E{second - first}P{8 - second}D"
        yield System(mesh, irp=rng.random() < 0.5, units=rng.choice((1, 2, 4)), sequences=rng.choice((1, 8, 128)))


def _mean(of: Callable[[int], float]) -> float:
    return statistics.fmean(of(seed) for seed in range(SEEDS))


def table6() -> Iterator[Row]:
    """Role switching: 100 requests at 3 a second, from 5E1P2D; see `role_switching`."""
    for name in switching.PAPER_ON:
        for on, paper in ((False, switching.PAPER_OFF), (True, switching.PAPER_ON)):

            def mean(system: System, on: bool = on, name: str = name) -> float:
                return _mean(lambda seed: getattr(_switching(system, on, seed), name))

            what = f"{name.removesuffix('_s').upper()} s, {'with' if on else 'without'} switching"
            fitted = name == "tpot_s" and not on
            yield Row("6", what, paper[name], mean(switching.AS_PAPER), mean(switching.OURS), fitted)


@functools.cache
def _switching(system: System, on: bool, seed: int) -> switching.Outcome:
    return switching.run(system, switching=on, seed=seed)


def table7() -> Iterator[Row]:
    """SLO attainment of requests with 24 clips on four devices, by rate."""
    stack, slo = PaperStack.for_audio(), SLO(2.0, 0.025)
    stated = {
        "4EPD": ("vLLM", (0.99, 1.0, 0.99, 0.91, 0.87, 0.87)),
        "3EP1D": ("DistServe", (0.99, 0.94, 0.89, 0.72, 0.69, 0.68)),
        "2E1P1D": ("EPD", (0.99, 0.99, 1.0, 0.96, 0.93, 0.93)),
    }
    for mesh, (name, values) in stated.items():
        for rate, paper in zip((0.10, 0.25, 0.50, 1.0, 1.1, 1.15), values, strict=True):

            def mean(as_paper: bool, mesh: str = mesh, rate: float = rate) -> float:
                system = System(mesh, as_paper, units=1 if as_paper else 8)
                return _mean(lambda seed: run(system, stack, frames(system, 24, rate, seed=seed), slo).attainment)

            fitted = rate == 1.0
            yield Row("7", f"attainment, {name} {mesh}, {rate:g} requests/s", paper, mean(True), mean(False), fitted)


def figure6() -> Iterator[Row]:
    """What EPD saves of the first token's time over DistServe, 0.25 requests a second, 2 to 8 pictures."""
    stack = PaperStack.calibrated()

    def ttft(system: System, count: int) -> float:
        return _mean(lambda seed: run(system, stack, pictures(system, count, 0.25, seed=seed)).ttft.mean)

    def saved(system: System) -> float:
        return max(1 - ttft(system, count) / ttft(System(DISTSERVE), count) for count in PICTURES)

    ours = saved(System(CHOSEN, as_paper=False, units=8))
    yield Row("figure 6", f"the most that {CHOSEN} saves over {DISTSERVE}", 0.719, saved(System(CHOSEN)), ours)


def offline() -> Iterator[Row]:
    """1000 requests with a picture each, all there at once, on eight devices."""
    stack = PaperStack.calibrated()

    def rate(system: System) -> float:
        return run(system, stack, pictures(system, 1, math.inf, requests=1000)).requests_s

    together = rate(System(DISTSERVE, sequences=128))
    apart = rate(System(DEFAULT, units=8, prompts=8, sequences=128)) / together
    ours = rate(System(DEFAULT, as_paper=False, units=8, prompts=4, sequences=128, chunk=4096)) / together
    yield Row(
        "offline", f"throughput of {DEFAULT} over that of {DISTSERVE} (an earlier version: up to)", 1.57, apart, ours
    )


def worst_error(rows: list[Row]) -> float:
    """The largest error of figures that were not fitted."""
    return max((abs(row.error) for row in rows if not row.fitted), default=0.0)
