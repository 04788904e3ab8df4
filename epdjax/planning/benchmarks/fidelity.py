"""How true the simulator is: the same requests, served by the live engine and simulated with a profile of its steps."""

import asyncio
import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epdjax.models.registry import config_of, family_of
from epdjax.planning.benchmarks.awake import cores_awake
from epdjax.planning.benchmarks.elsewhere import elsewhere
from epdjax.planning.benchmarks.traffic import Arrival, Mix, poisson
from epdjax.planning.costs import ProfiledCosts, Profiler
from epdjax.planning.costs.live import LiveTimes, measure_live
from epdjax.planning.costs.profile import Profile, mean_of
from epdjax.planning.metrics import Report, Timeline, report
from epdjax.planning.replay import first_difference, record, replay
from epdjax.planning.simulator import Simulation
from epdjax.serving.config import EngineConfig
from epdjax.serving.interpreter import settle
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.params import SamplingParams

# Everybody stays to the end, and hardly two pictures are the same.
MIX = Mix(text=0.4, one_picture=0.45, four_pictures=0.15, long_prompt=0.0, answer=(8, 40), pictures=100_000)
WARMING_UP = 12  # requests that do not count, one after another


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Traces, each of them twice.

    Attributes:
        live: as clients saw them. simulated: the same, with the profile's times.
        decisions: that the live scheduler made.
        difference: number of the first decision that another scheduler, told the same, makes otherwise; None: all are
            the same.
    """

    live: tuple[Timeline, ...]
    simulated: tuple[Timeline, ...]
    decisions: int
    difference: int | None

    @functools.cached_property
    def reports(self) -> tuple[Report, Report]:
        """Live, and simulated."""
        return report(self.live), report(self.simulated)

    def error(self, metric: str, statistic: str) -> float:
        """Of the simulation, as a share of what was live.

        Args:
            metric: ``ttft``, ``tpot``, ``itl`` or ``e2el``. statistic: ``mean``, ``p50``, ``p90`` or ``p99``.
        """
        live, simulated = (getattr(getattr(run, metric), statistic) for run in self.reports)
        return simulated / live - 1


def compare(
    folder: Path,
    mesh: str,
    rate: float,
    count: int,
    seed: int = 0,
    rounds: int = 8,
    profile_s: float = 5.0,
    **settings: Any,
) -> Fidelity:
    """Take a profile of a deployment, serve traces with it, and simulate the traces.

    Timing and serving take turns: a machine's slow moments are longer than either takes. They have processes of their
    own: what one leaves behind would slow the other down; and no core may fall asleep meanwhile.

    Args:
        folder: of a checkpoint, served in float32. mesh: spec.
        rate: requests per second. count: how many a trace has. seed: of the first trace.
        rounds: of timing and of a trace; all traces are simulated with the mean of all that was timed.
        profile_s: that steps are timed for in a round, at least, and answers of the idle engine too.
        settings: other fields of `EngineConfig`.

    Raises:
        ValueError: a count or a rate that is not positive; what `Profiler` says.
    """
    for name, value in (("requests", count), ("rounds", rounds), ("rate", rate)):
        if not value > 0:
            raise ValueError(f"--{name} must be more than 0, not {value:g}")
    with (
        cores_awake(),
        elsewhere(Timing, folder, mesh, settings) as timing,
        elsewhere(Serving, folder, mesh, settings) as serving,
    ):
        serving("warm_up", trace(rate, WARMING_UP, seed + rounds))
        for number in range(rounds):
            timing("take", serving("idle", profile_s), profile_s)
            serving("serve", trace(rate, count, seed + number))
        fidelity: Fidelity = serving("compared", timing("costs"))
        return fidelity


def trace(rate: float, count: int, seed: int) -> list[Arrival]:
    """The first requests of a Poisson workload of `MIX`."""
    return list(itertools.islice(poisson(rate, float("inf"), seed, MIX, leaving=0.0, slow=0.0), count))


class Timing:
    """A deployment's steps, one kind of instance at a time.

    Args:
        folder, mesh, settings: see `compare`.
    """

    def __init__(self, folder: Path, mesh: str, settings: Mapping[str, Any]):
        config = EngineConfig(model=folder, mesh=mesh, **settings)
        family, model = family_of(folder), config_of(folder)
        self._profiler = Profiler(family, model, config, name=folder.name, dtype="float32", checkpoint=folder)
        self._profiles: list[Profile] = []

    def take(self, live: LiveTimes, least_s: float) -> None:
        """A profile."""
        self._profiles.append(self._profiler.take(live, least_s=least_s))

    def costs(self) -> ProfiledCosts:
        """By the mean of all profiles."""
        return ProfiledCosts(mean_of(self._profiles))

    def close(self) -> None:
        """Nothing runs."""


class Serving:
    """The deployment at work.

    Args:
        folder, mesh, settings: see `compare`.
    """

    def __init__(self, folder: Path, mesh: str, settings: Mapping[str, Any]):
        self._llm, self._mesh = AsyncLLM(folder, mesh, dtype="float32", role_switching="off", **settings), mesh
        self._recording = record(self._llm._engine.scheduler)
        self._arrivals: dict[str, Arrival] = {}
        self._timelines: dict[str, Timeline] = {}

    def warm_up(self, arrivals: Sequence[Arrival]) -> None:
        """Requests that do not count, each alone and then all at once: the first steps of a bucket take longer."""

        async def serve() -> None:
            for number, arrival in enumerate(arrivals):
                await self._client(f"warm-{number}", arrival, Timeline(0.0))
            await asyncio.gather(
                *(self._client(f"hot-{number}", arrival, Timeline(0.0)) for number, arrival in enumerate(arrivals))
            )

        asyncio.run(serve())
        settle()

    def idle(self, least_s: float) -> LiveTimes:
        """How it answers one request at a time."""
        return asyncio.run(measure_live(self._llm, least_s))

    def serve(self, arrivals: Sequence[Arrival]) -> None:
        """Requests when they arrive."""

        async def serve() -> None:
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for arrival in arrivals:
                    await asyncio.sleep(max(0.0, began + arrival.at_s - time.monotonic()))
                    name = f"r{len(self._arrivals)}"
                    self._arrivals[name], self._timelines[name] = arrival, Timeline(time.monotonic())
                    group.create_task(self._client(name, arrival, self._timelines[name]))

        asyncio.run(serve())

    async def _client(self, name: str, arrival: Arrival, timeline: Timeline) -> None:
        params = SamplingParams(temperature=0, max_tokens=arrival.max_tokens, ignore_eos=True)
        async for output in self._llm.generate(arrival.messages, params, request_id=name):
            timeline.finished = time.monotonic()
            new = len(output.outputs[0].token_ids) - timeline.tokens
            timeline.token_times += [timeline.finished] * new
            timeline.reason = output.outputs[0].finish_reason or ""

    def compared(self, costs: ProfiledCosts) -> Fidelity:
        """All that was served, beside what it would be with costs."""
        decisions = self._recording.decisions
        return Fidelity(
            tuple(self._timelines.values()),
            tuple(self._simulate(costs).values()),
            len(decisions),
            first_difference(decisions, replay(self._recording)),
        )

    def _simulate(self, costs: ProfiledCosts) -> dict[str, Timeline]:
        recording, arrivals = self._recording, self._arrivals
        specs = {spec.request_id: spec for name, (spec, *_) in recording.calls if name == "add"}
        sizes = {spec.name: spec for spec in recording.specs}
        pixels = {name: [each.width * each.height for each in _pictures(arrivals[name])] for name in arrivals}
        host = costs.preprocessing.host(pixels) if costs.preprocessing else None
        machine = dataclasses.replace(costs.machine, host=host)
        simulation = Simulation(self._mesh, recording.config, lambda place: sizes[place.name], costs, machine=machine)
        return simulation.run([(timeline.arrived, specs[name]) for name, timeline in self._timelines.items()])

    def close(self) -> None:
        """End the engine."""
        asyncio.run(self._llm.shutdown(drain=False))


def _pictures(arrival: Arrival) -> Sequence[Any]:
    parts = arrival.messages[0]["content"]
    return [part["image"] for part in parts if part["type"] == "image"]
