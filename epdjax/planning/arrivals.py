"""When requests come: seconds after the start, from a seeded generator."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator

KINDS = ("poisson", "gamma", "constant", "ramp", "at-once")


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """A process of arrivals.

    Attributes:
        kind: ``poisson``; ``gamma``, in bursts; ``constant``, evenly; ``ramp``, Poisson with a rate that grows from
            `start` times the mean rate to `end` times it in `ramp_s` seconds and stays there; ``at-once``.
        burstiness: of gamma: the coefficient of variation of the gaps, 1 is Poisson.
        start, end, ramp_s: of a ramp.

    Raises:
        ValueError: an unknown kind, or numbers that make no sense.
    """

    kind: str = "poisson"
    burstiness: float = 2.0
    start: float = 0.5
    end: float = 1.5
    ramp_s: float = 60.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"arrivals are {', '.join(KINDS)}, not {self.kind!r}")
        for name in ("burstiness", "start", "end", "ramp_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be greater than 0, not {value!r}")

    def times(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Without end.

        Args:
            rate: requests per second, on average.

        Raises:
            ValueError: a rate that is not positive.
        """
        if not 0 < rate < math.inf:
            raise ValueError(f"the rate must be greater than 0, not {rate!r}")
        if self.kind == "at-once":
            return itertools.repeat(0.0)
        return itertools.accumulate(self._gaps(rate, rng)) if self.kind != "ramp" else self._ramp(rate, rng)

    def _gaps(self, rate: float, rng: random.Random) -> Iterator[float]:
        shape = 1 / self.burstiness**2
        while True:
            match self.kind:
                case "poisson":
                    yield rng.expovariate(rate)
                case "gamma":
                    yield rng.gammavariate(shape, 1 / (rate * shape))
                case _:
                    yield 1 / rate

    def _ramp(self, rate: float, rng: random.Random) -> Iterator[float]:
        """By thinning: candidates at the highest rate, each kept as often as the rate at its time asks for."""
        highest, at = rate * max(self.start, self.end), 0.0
        while True:
            at += rng.expovariate(highest)
            now = rate * (self.start + (self.end - self.start) * min(1.0, at / self.ramp_s))
            if rng.random() < now / highest:
                yield at
