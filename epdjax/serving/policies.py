"""Small rules that can be swapped: in which order a stage serves its queue, and which instance gets a request.

An order gives every request a *virtual time* when it arrives, and the smallest goes first. It never changes and grows
with the time of arrival, so of all requests still to come only finitely many can overtake one that is here: nobody
starves, whatever the policy and the priorities.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from epdjax.serving.fair_share import FairShare
from epdjax.serving.request import RequestSpec

STAGES = {"encode": "E", "prefill": "P", "decode": "D"}
PRIORITY_S = 30.0
"""What one step of `priority` is worth: a request goes before those of one priority less that came up to so many
seconds earlier."""
SJF_TOKEN_S = 0.01
"""How long a longer job lets shorter ones pass, seconds for each token that it is longer."""


class Order(Protocol):
    """Gives requests their virtual times. One object per stage; it may keep state."""

    def virtual_time(self, spec: RequestSpec, role: str, arrived: float) -> float:
        """Seconds, of a request that arrives at `arrived` seconds."""
        ...

    def started(self, virtual_time: float) -> None:
        """The stage has begun with a request; its virtual time, priority included."""
        ...


@dataclasses.dataclass(frozen=True)
class ByItself:
    """An order that looks at nothing but the request."""

    rule: Callable[[RequestSpec, str, float], float]

    def virtual_time(self, spec: RequestSpec, role: str, arrived: float) -> float:
        return self.rule(spec, role, arrived)

    def started(self, virtual_time: float) -> None:
        """Makes no difference."""


def fcfs(spec: RequestSpec, role: str, arrived: float) -> float:
    """First come, first served."""
    return arrived


def sjf(spec: RequestSpec, role: str, arrived: float) -> float:
    """Shortest job first: by MM tokens to encode, prompt tokens, or longest answer."""
    size = {"E": sum(spec.unit_tokens), "P": spec.prompt_tokens, "D": spec.max_tokens}[role]
    return arrived + SJF_TOKEN_S * size


def deadline(spec: RequestSpec, role: str, arrived: float) -> float:
    """Earliest deadline first: when the first token is due by the request's objective."""
    return arrived + spec.slo_s


ORDERS: dict[str, Callable[[], Order]] = {
    "fcfs": lambda: ByItself(fcfs),
    "sjf": lambda: ByItself(sjf),
    "deadline": lambda: ByItself(deadline),
    "fair": FairShare,
}


def rank(order: Order, spec: RequestSpec, role: str, arrived: float, number: int) -> tuple[float, int]:
    """Sort key of a request at a stage, priority included; `number` breaks ties."""
    return (order.virtual_time(spec, role, arrived) + PRIORITY_S * spec.priority, number)


class Assignment(Protocol):
    """Chooses one of several instances. One object per stage; it may keep state."""

    def choose(self, names: Sequence[str], load: Callable[[str], float], cost: Callable[[str], float]) -> str:
        """
        Args:
            names: the candidates.
            load: seconds of work that an instance has before it.
            cost: seconds that the new work itself would take there; less where its content is cached.
        """
        ...


class RoundRobin:
    """Each in turn, across requests (not restarted for each, which would send everything to the first)."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, names: Sequence[str], load: Callable[[str], float], cost: Callable[[str], float]) -> str:
        self._turn += 1
        return names[(self._turn - 1) % len(names)]


class LeastLoaded:
    """The instance with the least outstanding work; the first of equals."""

    def choose(self, names: Sequence[str], load: Callable[[str], float], cost: Callable[[str], float]) -> str:
        return min(names, key=load)


class CacheAware:
    """The instance that would be done first: one that holds the prefix or the MM tokens already is preferred, as long
    as its backlog is not worse by more than what they save."""

    def choose(self, names: Sequence[str], load: Callable[[str], float], cost: Callable[[str], float]) -> str:
        return min(names, key=lambda name: load(name) + cost(name))


ASSIGNMENTS: dict[str, Callable[[], Assignment]] = {
    "cache-aware": CacheAware,
    "least-loaded": LeastLoaded,
    "round-robin": RoundRobin,
}


def per_stage(setting: str, known: Sequence[str], name: str) -> dict[str, str]:
    """A policy for each role, from one name for all or from ``encode=sjf,prefill=deadline``.

    Stages that are not named get the first of `known`.

    Raises:
        ValueError: an unknown stage or policy, named.
    """
    chosen = dict.fromkeys("EPD", known[0])
    for part in setting.split(","):
        stage, equals, policy = part.strip().rpartition("=")
        if policy not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {policy!r}")
        if equals and stage not in STAGES:
            raise ValueError(f"{name} names the stage {stage!r}; stages are {', '.join(STAGES)}")
        chosen |= {STAGES[stage]: policy} if equals else dict.fromkeys("EPD", policy)
    return chosen
