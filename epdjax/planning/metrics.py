"""What a run was like for those who asked and for the devices: percentiles, SLO attainment, utilisation."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class SLO:
    """What a request is to meet: seconds to its first token, and between tokens on average."""

    ttft_s: float
    tpot_s: float


@dataclasses.dataclass
class Timeline:
    """What became of a request, in seconds of the clock.

    Attributes:
        token_times: when each token of the answer was there.
        reason: how it ended: ``stop``, ``length``, or what went wrong.
    """

    arrived: float
    finished: float = math.nan
    token_times: list[float] = dataclasses.field(default_factory=list)
    reason: str = ""

    @property
    def answered(self) -> bool:
        return self.reason in ("stop", "length")

    @property
    def first_token(self) -> float:
        return self.token_times[0] if self.token_times else math.nan

    @property
    def tokens(self) -> int:
        return len(self.token_times)

    @property
    def latency_s(self) -> float:
        """Arrival to last token."""
        return self.finished - self.arrived

    @property
    def ttft_s(self) -> float:
        return self.first_token - self.arrived

    @property
    def tpot_s(self) -> float:
        """Mean gap between tokens after the first; not a number where there is only one."""
        return (self.token_times[-1] - self.first_token) / (self.tokens - 1) if self.tokens > 1 else math.nan

    def meets(self, slo: SLO) -> bool:
        """Whether it was answered in time; one of a single token has no time between tokens to miss."""
        return self.answered and self.ttft_s <= slo.ttft_s and not self.tpot_s > slo.tpot_s


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and percentiles of something; not numbers where there was none of it."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Those that are numbers."""
        found = np.fromiter((value for value in values if not math.isnan(value)), float)
        if not len(found):
            return cls(*(math.nan,) * 4)
        return cls(float(found.mean()), *(float(q) for q in np.percentile(found, (50, 90, 99))))


@dataclasses.dataclass(frozen=True)
class Moves:
    """Transfers of one kind, seconds over all requests.

    Attributes:
        total_s: that moves took. exposed_s: that requests waited for them with nothing else left to do.
    """

    total_s: float = 0.0
    exposed_s: float = 0.0

    @property
    def hidden(self) -> float:
        """Share of the time of moves that nobody waited for."""
        return max(0.0, 1 - self.exposed_s / self.total_s) if self.total_s else 1.0


@dataclasses.dataclass(frozen=True)
class Usage:
    """An instance.

    Attributes:
        busy: share of the run that it had something to run.
        queued: requests (units, where it encodes) that waited for it, on average over the samples; `most_queued` of
            them at most. running: sequences that it decoded, on average.
    """

    busy: float
    queued: float
    most_queued: int
    running: float

    @property
    def idle(self) -> float:
        return 1 - self.busy


@dataclasses.dataclass(frozen=True)
class Report:
    """A run as a whole.

    Attributes:
        seconds: from the first arrival to the last end.
        requests: that came. answered: of them. tokens: of answers.
        ttft, tpot, itl, e2el: seconds to the first token, mean between tokens, between any two tokens, to the end.
        attainment: share of all requests that met the SLO; not a number without one.
        usage: by instance. moves: ``mm`` and ``kv``.
    """

    seconds: float
    requests: int
    answered: int
    tokens: int
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread
    attainment: float
    usage: Mapping[str, Usage] = dataclasses.field(default_factory=dict)
    moves: Mapping[str, Moves] = dataclasses.field(default_factory=dict)

    @property
    def requests_s(self) -> float:
        """Requests answered per second."""
        return self.answered / self.seconds if self.seconds else math.nan

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else math.nan


def report(
    timelines: Sequence[Timeline],
    slo: SLO | None = None,
    usage: Mapping[str, Usage] | None = None,
    moves: Mapping[str, Moves] | None = None,
) -> Report:
    """Sum up a run."""
    answered = [timeline for timeline in timelines if timeline.answered]
    ends = [timeline.finished for timeline in timelines if not math.isnan(timeline.finished)]
    seconds = max(ends, default=0.0) - min((timeline.arrived for timeline in timelines), default=0.0)
    met = sum(timeline.meets(slo) for timeline in timelines) / len(timelines) if slo and timelines else math.nan
    gaps = (gap for timeline in answered for gap in np.diff(timeline.token_times))
    return Report(
        seconds,
        len(timelines),
        len(answered),
        sum(timeline.tokens for timeline in answered),
        ttft=Spread.of(timeline.ttft_s for timeline in answered),
        tpot=Spread.of(timeline.tpot_s for timeline in answered),
        itl=Spread.of(gaps),
        e2el=Spread.of(timeline.latency_s for timeline in answered),
        attainment=met,
        usage=usage or {},
        moves=moves or {},
    )
