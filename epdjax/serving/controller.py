"""When an instance should take on other roles: the controller of role switching (EPD paper, section on it, table 6).

The released code of the paper gives the stage with the longest queue another instance whenever it looks, so load that
goes back and forth moves instances back and forth. Here a switch has to be worth it by a forecast, for some time, and
one that undoes another has to be worth more. Pure: it is told the time, and has no say in how a switch is made.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from epdjax.serving.forecast import Candidate, stage_times
from epdjax.serving.load import Estimate

__all__ = ["Candidate", "Controller", "ControllerSettings", "Decision"]

MINUTE_S = 60.0
EARLY = 0.9  # a sample so much of an interval after the last one counts: loops are not exact
ROUNDING = 1e-9  # times this close are the same


@dataclasses.dataclass(frozen=True)
class ControllerSettings:
    """What a switch has to be worth. A gain is seconds by which the slowest stage is done sooner.

    The defaults come from a fluid model with random requests, three a second, the work of each stage between a half
    and one and a half times the mean. Divided in proportion and 0.9 busy, eight or twenty devices are left alone, as
    they should be: with a horizon of 10 s, a gain of 1 s and a hysteresis of 1.25 they were switched three times in
    300 s, and the mean backlog was twice as long for it. After a lasting shift the mean backlog is 1.8 s a device,
    and 25 s without switching (the other way 1.6 s and 37 s); those eager settings have 1.7 s (1.1 s).

    Attributes:
        interval_s: between samples, as in the paper's code; those that come faster are not looked at.
        cooldown_s: after a switch is done, before the next is thought of; with `sustain` it is a switch in six seconds.
        horizon_s: how far ahead arrivals are counted. A switch is made for load that lasts about so long.
        min_gain_s: the least gain.
        hysteresis: the least gain as a multiple of what the switch costs; and how much slower the stage that is helped
            has to be than the stages that help will be afterwards.
        keeps_up: a stage that needs no more than this share of the horizon for backlog and arrivals is not helped.
            The devices were divided for something, such as short times to the first token by wide IRP.
        sustain: samples in a row that must agree which stage to help.
        max_per_minute: switches in any minute.
        recent_s: for so long a stage that was helped is not to help others,
        reversal: unless that gains this many times what helping it did.
    """

    interval_s: float = 1.0
    cooldown_s: float = 3.0
    horizon_s: float = 20.0
    min_gain_s: float = 2.0
    hysteresis: float = 1.4
    keeps_up: float = 0.7
    sustain: int = 3
    max_per_minute: int = 6
    recent_s: float = 60.0
    reversal: float = 2.0

    def __post_init__(self) -> None:
        least = {"hysteresis": 1.0, "reversal": 1.0, "sustain": 1, "max_per_minute": 1}
        for name, value in dataclasses.asdict(self).items():
            if not least.get(name, 0.0) <= value < math.inf:
                raise ValueError(f"{name} must be finite and {least.get(name, 0)} or more, not {value}")
        if not self.interval_s or not self.horizon_s:
            raise ValueError("interval_s and horizon_s must be more than 0")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, and why.

    Attributes:
        candidate: the switch to make now; None: leave everything as it is.
        reason: a few words, the same for the same reason.
        numbers: what it rests on: seconds that each stage needs (`E_s`, `P_s`, `D_s`), and of the best switch what
            they would be (`E_after_s` ...), `gain_s`, `needed_s`, `cost_s`, and `agreed`, the samples in a row.
    """

    candidate: Candidate | None
    reason: str
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Made:
    """A switch that was decided."""

    at: float
    candidate: Candidate
    gain_s: float


@dataclasses.dataclass(frozen=True)
class _Weighed:
    """A candidate, what it brings, and what it would have to."""

    candidate: Candidate
    after: Mapping[str, float]
    gain_s: float
    needed_s: float
    undoing_s: float  # needed, because it undoes a recent switch

    @property
    def worth_it(self) -> bool:
        return self.gain_s > 0 and self.gain_s >= max(self.needed_s, self.undoing_s)


class Controller:
    """Decides on switches; takes those that it decided on as made.

    The stages' times are compared slowest first: a switch that leaves the slowest as it is may help the next one.
    Where two stages are equally slow, neither could be helped otherwise, since the other would stay as slow as it is.
    """

    def __init__(self, settings: ControllerSettings):
        self.settings = settings
        self._looked_at = -math.inf
        self._made: list[_Made] = []  # those not forgotten yet
        self._agreed: tuple[str, int] = ("", 0)  # which stage to help, by how many samples

    def decide(self, now: float, estimate: Estimate, candidates: Sequence[Candidate]) -> Decision:
        """What to do now.

        Args:
            now: seconds, on the clock of the estimate.
            candidates: all switches that could be made.

        Raises:
            ValueError: a candidate does not fit the estimate.
        """
        settings = self.settings
        if now - self._looked_at < EARLY * settings.interval_s:
            return Decision(None, "asked too soon", {"since_s": now - self._looked_at})
        self._looked_at = now
        self._made = [made for made in self._made if now - made.at < max(MINUTE_S, self._memory_s(made))]
        before = stage_times(estimate, settings.horizon_s)
        numbers = {f"{role}_s": time for role, time in before.items()}
        agreed, self._agreed = self._agreed, ("", 0)
        if self._made and now - self._made[-1].at < self._rest_s(self._made[-1]):
            return Decision(None, "cooling down after a switch", numbers | {"since_s": now - self._made[-1].at})
        if max(before.values()) <= settings.keeps_up * settings.horizon_s:
            return Decision(None, "every stage keeps up", numbers)
        if not candidates:
            return Decision(None, "no switch is possible", numbers)
        weighed = [self._weigh(now, before, stage_times(estimate, settings.horizon_s, c), c) for c in candidates]
        best = min(weighed, key=lambda w: (not w.worth_it, _slowest_first(w.after), w.candidate.cost_s))
        numbers |= {f"{role}_after_s": time for role, time in best.after.items()}
        needed_s = max(best.needed_s, best.undoing_s)
        numbers |= {"gain_s": best.gain_s, "needed_s": needed_s, "cost_s": best.candidate.cost_s}
        if not best.worth_it:
            undoes = best.gain_s >= best.needed_s
            return Decision(None, "would undo a recent switch" if undoes else "no switch gains enough", numbers)
        helped = best.candidate.adds or f"not {best.candidate.removes}"
        self._agreed = (helped, agreed[1] + 1 if helped == agreed[0] else 1)
        numbers["agreed"] = self._agreed[1]
        if self._agreed[1] < settings.sustain:
            return Decision(None, "not for long enough yet", numbers)
        if sum(now - made.at < MINUTE_S for made in self._made) >= settings.max_per_minute:
            return Decision(None, "too many switches in a minute", numbers)
        self._made.append(_Made(now, best.candidate, best.gain_s))
        self._agreed = ("", 0)
        return Decision(best.candidate, "a stage is too slow", numbers)

    def _rest_s(self, made: _Made) -> float:
        """How long after it was decided the next switch may be thought of. While it is being made the sample lacks its
        devices, and the stage that waits for them would seem to need more."""
        return made.candidate.cost_s + self.settings.cooldown_s

    def _memory_s(self, made: _Made) -> float:
        return self._rest_s(made) + self.settings.recent_s

    def _weigh(
        self, now: float, before: Mapping[str, float], after: Mapping[str, float], candidate: Candidate
    ) -> _Weighed:
        settings = self.settings
        undone = [
            made.gain_s
            for made in self._made
            if now - made.at < self._memory_s(made) and set(made.candidate.adds) & set(candidate.removes)
        ]
        return _Weighed(
            candidate,
            after,
            self._gain_s(before, after),
            needed_s=max(settings.min_gain_s, settings.hysteresis * candidate.cost_s),
            undoing_s=settings.reversal * max(undone, default=0.0),
        )

    def _gain_s(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """By how much the slowest stage that a switch helps is done sooner; 0 where it helps none, or makes another
        too slow."""
        settings = self.settings
        harmed = max((then for role, then in after.items() if then > before[role] * (1 + ROUNDING)), default=0.0)
        gains = [0.0]
        for was, then in zip(_slowest_first(before), _slowest_first(after)):
            enough = max(settings.hysteresis * harmed, settings.keeps_up * settings.horizon_s)
            if then > was * (1 + ROUNDING) or was < enough:
                break
            if then < was:
                gains.append(was - then)
        return max(gains)


def _slowest_first(times: Mapping[str, float]) -> list[float]:
    return sorted(times.values(), reverse=True)
