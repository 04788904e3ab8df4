"""How true the simulator is: the same requests, served by the live engine and simulated with a profile of its steps."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epdjax.models.registry import config_of, family_of
from epdjax.planning.benchmarks.traffic import Arrival, Mix, poisson
from epdjax.planning.costs import ProfiledCosts, take_profile
from epdjax.planning.metrics import Report, Timeline, report
from epdjax.planning.replay import Recording, first_difference, record, replay
from epdjax.planning.simulator import Simulation
from epdjax.serving.config import EngineConfig
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

    @classmethod
    def of_all(cls, rounds: Sequence["Fidelity"]) -> "Fidelity":
        """Several as one."""
        return cls(
            tuple(timeline for each in rounds for timeline in each.live),
            tuple(timeline for each in rounds for timeline in each.simulated),
            sum(each.decisions for each in rounds),
            next((each.difference for each in rounds if each.difference is not None), None),
        )

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
    rounds: int = 1,
    profile_s: float = 10.0,
    **settings: Any,
) -> Fidelity:
    """Take a profile of a deployment, serve a trace with it, and simulate the trace.

    Profile and engine have processes of their own: what one leaves behind would slow the other down.

    Args:
        folder: of a checkpoint, served in float32. mesh: spec.
        rate: requests per second. count: how many. seed: of the trace.
        rounds: of all this, with a trace each; a machine's slow moments are longer than a profile takes.
        profile_s: that steps are timed for at least.
        settings: other fields of `EngineConfig`.

    Raises:
        ValueError: a count or a rate that is not positive; what `take_profile` says.
    """
    for name, value in (("requests", count), ("rounds", rounds), ("rate", rate)):
        if not value > 0:
            raise ValueError(f"--{name} must be more than 0, not {value:g}")
    traces = [(rate, count, seed + number) for number in range(rounds)]
    return Fidelity.of_all([_round(folder, mesh, settings, profile_s, *trace) for trace in traces])


def _round(
    folder: Path, mesh: str, settings: dict[str, Any], profile_s: float, rate: float, count: int, seed: int
) -> Fidelity:
    with _process() as process:
        costs = process.submit(_profile, folder, mesh, settings, profile_s).result()
    with _process() as process:
        return process.submit(_serve, folder, mesh, settings, costs, rate, count, seed).result()


def _process() -> concurrent.futures.Executor:
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _profile(folder: Path, mesh: str, settings: dict[str, Any], least_s: float) -> ProfiledCosts:
    config = EngineConfig(model=folder, mesh=mesh, **settings)
    family, model, name = family_of(folder), config_of(folder), folder.name
    made = take_profile(family, model, config, name=name, dtype="float32", checkpoint=folder, least_s=least_s)
    return ProfiledCosts(made)


def _serve(folder: Path, mesh: str, settings: dict[str, Any], *trace: Any) -> Fidelity:
    async def serve() -> Fidelity:
        llm = AsyncLLM(folder, mesh, dtype="float32", **settings)
        try:
            return await measure(llm, mesh, *trace)
        finally:
            await llm.shutdown(drain=False)

    return asyncio.run(serve())


def trace(rate: float, count: int, seed: int) -> list[Arrival]:
    """The first requests of a Poisson workload of `MIX`."""
    return list(itertools.islice(poisson(rate, float("inf"), seed, MIX, leaving=0.0, slow=0.0), count))


async def measure(llm: AsyncLLM, mesh: str, costs: ProfiledCosts, rate: float, count: int, seed: int = 0) -> Fidelity:
    """Serve a trace, and simulate it.

    Args:
        llm: an engine that has served nothing yet. mesh: its mesh spec.
        costs: of its steps.
        rate: requests per second. count: how many.
    """
    recording = record(llm._engine.scheduler)
    for number, arrival in enumerate(trace(rate, WARMING_UP, seed + 1)):
        await _client(llm, f"warm-{number}", arrival, Timeline(0.0))
    arrivals = {f"r{number}": arrival for number, arrival in enumerate(trace(rate, count, seed))}
    timelines: dict[str, Timeline] = {}
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for name, arrival in arrivals.items():
            await asyncio.sleep(max(0.0, began + arrival.at_s - time.monotonic()))
            timelines[name] = Timeline(time.monotonic())
            group.create_task(_client(llm, name, arrival, timelines[name]))
    return Fidelity(
        tuple(timelines.values()),
        tuple(_simulate(mesh, recording, costs, arrivals, timelines).values()),
        len(recording.decisions),
        first_difference(recording.decisions, replay(recording)),
    )


async def _client(llm: AsyncLLM, name: str, arrival: Arrival, timeline: Timeline) -> None:
    params = SamplingParams(temperature=0, max_tokens=arrival.max_tokens, ignore_eos=True)
    async for output in llm.generate(arrival.messages, params, request_id=name):
        timeline.finished = time.monotonic()
        new = len(output.outputs[0].token_ids) - timeline.tokens
        timeline.token_times += [timeline.finished] * new
        timeline.reason = output.outputs[0].finish_reason or ""


def _simulate(
    mesh: str,
    recording: Recording,
    costs: ProfiledCosts,
    arrivals: Mapping[str, Arrival],
    timelines: Mapping[str, Timeline],
) -> dict[str, Timeline]:
    specs = {spec.request_id: spec for name, (spec, *_) in recording.calls if name == "add"}
    sizes = {spec.name: spec for spec in recording.specs}
    pixels = {name: [picture.width * picture.height for picture in _pictures(arrivals[name])] for name in arrivals}
    host = costs.preprocessing.host(pixels) if costs.preprocessing else None
    machine = dataclasses.replace(costs.machine, host=host)
    simulation = Simulation(mesh, recording.config, lambda place: sizes[place.name], costs, machine=machine)
    return simulation.run([(timeline.arrived, specs[name]) for name, timeline in timelines.items()])


def _pictures(arrival: Arrival) -> Sequence[Any]:
    parts = arrival.messages[0]["content"]
    return [part["image"] for part in parts if part["type"] == "image"]
