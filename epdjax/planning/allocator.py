"""The allocator: which deployment serves a workload best (EPD paper, optimised resource allocation).

It maximises what the simulator says, less a price for each device: f(p, b, s) - beta * cost(p). Small spaces are
enumerated; large ones are searched by Optuna's tree-structured Parzen estimator.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

from epdjax.planning.metrics import Report
from epdjax.planning.search import suggested
from epdjax.planning.space import Choice, Space

ATTAINMENT = 0.9  # share of requests that meet the SLO at goodput (EPD paper)
RATES = 1.05  # goodput is found to this factor
Simulate = Callable[[Choice, float], Report]
"""Run a choice at a rate, requests per second."""


@dataclasses.dataclass(frozen=True)
class Score:
    """What a choice is worth.

    Attributes:
        value: objective less the price of its devices; minus infinity where it does not fit.
        metric: the objective alone.
        why: it does not fit.
    """

    choice: Choice
    value: float
    metric: float = math.nan
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        scores: of all choices that were looked at, the best first.
        size: of the space.
    """

    scores: tuple[Score, ...]
    size: int

    @property
    def best(self) -> Score:
        return self.scores[0]

    @property
    def runner_up(self) -> Score | None:
        """The best one with another mesh."""
        return next((s for s in self.scores if s.choice.mesh != self.best.choice.mesh and not s.why), None)

    def sensitivity(self) -> dict[str, float]:
        """For each setting, how much worse the best choice with another value of it is, as a share of the best; not
        for settings of which only one value was looked at."""
        best, found = self.best, {}
        for field in dataclasses.fields(Choice):
            others = [
                s.value
                for s in self.scores
                if not s.why and getattr(s.choice, field.name) != getattr(best.choice, field.name)
            ]
            if others and best.value:
                found[field.name] = (best.value - max(others)) / abs(best.value)
        return found


class NothingFits(ValueError):
    """No choice of a space can be served; the message has the reasons."""


class Goodput:
    """The highest rate at which enough requests meet the SLO.

    Args:
        holds: whether they do, of a choice at a rate in requests per second.
        most: no rate beyond it is tried.
        first: the first rate tried; for further choices the last answer's power of two.
    """

    def __init__(self, holds: Callable[[Choice, float], bool], most: float = 1024.0, first: float = 1.0):
        self._holds, self._most, self._least, self._first = holds, most, first / 1024, first

    def __call__(self, choice: Choice) -> float:
        """Requests per second; 0 where even a thousandth of the very first guess is too much."""
        low, high = 0.0, self._first
        while self._holds(choice, high):
            low, high = high, high * 2
            if low >= self._most:
                return low
        while not low and high > self._least:
            low = high / 2 if self._holds(choice, high / 2) else 0.0
            high = high if low else high / 2
        self._first = low or self._first
        while low and high / low > RATES:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._holds(choice, middle) else (low, middle)
        return low


METRICS: dict[str, Callable[[Report], float]] = {
    "attainment": lambda r: r.attainment,
    "throughput": lambda r: r.tokens_s,
    "ttft": lambda r: -r.ttft.mean,
    "tpot": lambda r: -r.tpot.mean,
    "latency": lambda r: -r.e2el.mean,
}
"""Objectives other than goodput, so that more is better."""


def metric_at(name: str, simulate: Simulate, rate: float) -> Callable[[Choice], float]:
    """An objective: a figure of the report at a given rate; not a number where no request was answered.

    Raises:
        ValueError: no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"the objective is goodput, {', '.join(METRICS)}, not {name!r}")
    return lambda choice: METRICS[name](simulate(choice, rate))


class Allocator:
    """See the module.

    Args:
        objective: what a choice achieves, more is better.
        fits: raises ValueError where a choice does not fit.
        beta: price of a device, in the objective's unit.
    """

    def __init__(self, objective: Callable[[Choice], float], fits: Callable[[Choice], object], beta: float = 0.0):
        self._objective, self._fits, self._beta = objective, fits, beta
        self.scores: dict[Choice, Score] = {}

    def score(self, choice: Choice) -> Score:
        """What a choice is worth; each is looked at once."""
        if choice not in self.scores:
            self.scores[choice] = self._score(choice)
        return self.scores[choice]

    def _score(self, choice: Choice) -> Score:
        try:
            self._fits(choice)
        except ValueError as error:
            return Score(choice, -math.inf, why=str(error))
        metric = self._objective(choice)
        value = metric - self._beta * choice.devices
        return Score(choice, -math.inf if math.isnan(value) else value, metric)

    def exhaustive(self, space: Space) -> Plan:
        """Look at every choice."""
        return self._plan(space, iter(space))

    def search(self, space: Space, evaluations: int, seed: int = 0) -> Plan:
        """Look at so many different choices, those that look promising, or at every choice where there are no more.

        Raises:
            NothingFits: none of them does.
        """
        if evaluations >= len(space):
            return self.exhaustive(space)
        return self._plan(space, suggested(space, evaluations, seed, lambda choice: self.score(choice).value))

    def _plan(self, space: Space, choices: Iterator[Choice]) -> Plan:
        scores = sorted({choice: self.score(choice) for choice in choices}.values(), key=lambda s: -s.value)
        if not scores or scores[0].value == -math.inf:
            reasons = list(dict.fromkeys(score.why for score in scores if score.why))
            raise NothingFits("nothing that was tried can be served: " + ("; ".join(reasons[:3]) or "no such mesh"))
        return Plan(tuple(scores), len(space))
