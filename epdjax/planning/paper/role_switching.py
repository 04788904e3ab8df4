"""The EPD paper's experiment on role switching (its table 6): pictures with short answers, then with long ones.

100 requests at 3 a second, each with one 4K picture; the first 10 are answered with 50 tokens, the others with 500.
The devices start as 5E1P2D; the paper ends at 2E1P5D. It is run with the times of the paper's stack and this project's
load meter and controller.
"""

import dataclasses
import statistics
from collections.abc import Callable

from epdjax.planning.metrics import Timeline
from epdjax.planning.paper.latency import System, pictures, ready
from epdjax.planning.paper.stack import PaperStack
from epdjax.planning.simulator import Switched
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.request import RequestSpec

# With one picture a request there is nothing to share: encoders are by themselves, as the paper's are. Its script for
# this experiment hands eight prompts to a prefill step, as that of its offline run does.
AS_PAPER = System("5E1P2D", irp=False, prompts=8)
OURS = System("5E1P2D", as_paper=False, units=8, prompts=4, chunk=4096)
RATE, SHORT, LONG = 3.0, 50, 500
PAPER_OFF = {"latency_s": 61.10, "ttft_s": 1.33, "tpot_s": 0.12}
PAPER_ON = {"latency_s": 28.01, "ttft_s": 1.42, "tpot_s": 0.05}
MIGRATE_S = {"E": 0.2, "P": 0.2, "D": 0.2}  # parameters of an 8B model over a link of 100 GB/s, roughly


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Means over all requests, and the switches that were made."""

    latency_s: float
    ttft_s: float
    tpot_s: float
    switches: tuple[Switched, ...]
    mesh: str


def requests(system: System, seed: int) -> list[tuple[float, RequestSpec]]:
    """The paper's load, Poisson."""
    asked = pictures(system, 1, RATE, output=LONG, seed=seed)
    first = [(at, dataclasses.replace(spec, max_tokens=SHORT)) for at, spec in asked[:10]]
    return [*first, *asked[10:]]


def run(system: System, *, switching: bool, seed: int = 0) -> Outcome:
    """The experiment once."""
    arrivals, controller = requests(system, seed), ControllerSettings() if switching else None
    made = ready(system, PaperStack.calibrated(), arrivals, controller, MIGRATE_S)
    timelines = list(made.run(arrivals).values())
    return Outcome(
        _mean(timelines, lambda t: t.latency_s),
        _mean(timelines, lambda t: t.ttft_s),
        _mean(timelines, lambda t: t.tpot_s),
        tuple(made.switches),
        made.mesh,
    )


def _mean(timelines: list[Timeline], value: Callable[[Timeline], float]) -> float:
    return statistics.fmean(value(timeline) for timeline in timelines)
