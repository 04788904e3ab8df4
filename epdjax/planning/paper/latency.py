"""The EPD paper's latency tables, simulated twice: as the paper ran them, and with what this scheduler does.

*As the paper ran it*: its stack's times (`PaperStack`), whole pictures shared out among encoders, one request at a time
in encode and prefill, whole prompts in a step, everything of a picture there before prefill starts. *Ours* is this
scheduler with the same times: slices shared out, chunks, encode and prefill of one request overlapped.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping

from epdjax.planning.allocator import ATTAINMENT, Goodput
from epdjax.planning.machine import Machine
from epdjax.planning.metrics import SLO, Report
from epdjax.planning.paper.stack import PICTURE_TOKENS, SLICES, TEXT_TOKENS, PaperStack
from epdjax.planning.simulator import Simulation, Sizes
from epdjax.planning.space import Choice
from epdjax.planning.workloads import workload
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import Buckets, default_buckets
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.request import RequestSpec

SLICE_TOKENS = PICTURE_TOKENS // SLICES
OUTPUT_TOKENS = 10
REQUESTS = 100
LONGEST = 8192
SIZES = Sizes(kv_blocks=64 * 512, mm_blocks=3000, slots=128)  # 3000 MM blocks as in the paper, of a slice each


@dataclasses.dataclass(frozen=True)
class System:
    """A layout and how it is run.

    Attributes:
        as_paper: see the module. irp: encoders share the units of a request.
        units, prompts, sequences: of a step of encode (each device), prefill and decode.
        chunk: most prompt tokens of a step; as the paper ran prompts are whole.
    """

    mesh: str
    as_paper: bool = True
    irp: bool = True
    units: int = 1
    prompts: int = 1
    sequences: int = 128
    chunk: int = 1024

    def config(self, unit_tokens: int) -> SchedulerConfig:
        """Shapes and limits."""
        chunk = LONGEST if self.as_paper else self.chunk
        buckets = default_buckets(
            max_model_len=LONGEST,
            block_size=16,
            max_chunk=chunk,
            max_seqs=self.sequences,
            max_units=self.units,
            prefill_rows=self.prompts,
        )
        policy = "least-loaded" if self.as_paper else "cache-aware"
        pace = math.inf if self.as_paper else 4.0
        return SchedulerConfig(
            _one_by_one(buckets) if self.prompts == 1 else buckets,
            mm_block_size=unit_tokens,
            max_model_len=LONGEST,
            max_requests=100_000,
            max_queued_units=10_000_000,
            assignment=policy,
            decode_pace=pace,
        )


def goodput(system: System, stack: PaperStack, count: int, slo: SLO, seeds: int = 3) -> tuple[float, Report]:
    """The highest rate at which `ATTAINMENT` of requests with `count` pictures meet the SLO, and a run at it."""

    def holds(_: object, rate: float) -> bool:
        runs = [run(system, stack, pictures(system, count, rate, seed=seed), slo) for seed in range(seeds)]
        return statistics.fmean(each.attainment for each in runs) >= ATTAINMENT

    rate = Goodput(holds)(Choice(system.mesh))
    return rate, run(system, stack, pictures(system, count, rate or 1e-3), slo)


def _one_by_one(buckets: Buckets) -> Buckets:
    return dataclasses.replace(buckets, prefill=tuple(shape for shape in buckets.prefill if shape[0] == 1))


def pictures(
    system: System, count: int, rate: float, *, output: int = OUTPUT_TOKENS, seed: int = 0, requests: int = REQUESTS
) -> list[tuple[float, RequestSpec]]:
    """Requests with `count` 4K pictures each, Poisson; at an infinite rate all at once."""
    return _requests(system, count * PICTURE_TOKENS, PICTURE_TOKENS, rate, output, seed, requests)


def frames(system: System, count: int, rate: float, *, seed: int = 0) -> list[tuple[float, RequestSpec]]:
    """Requests with a video of `count` frames, each a slice."""
    return _requests(system, count * SLICE_TOKENS, SLICE_TOKENS, rate, OUTPUT_TOKENS, seed, REQUESTS)


def _requests(
    system: System, mm_tokens: int, item_tokens: int, rate: float, output: int, seed: int, requests: int
) -> list[tuple[float, RequestSpec]]:
    each = SLICE_TOKENS
    if system.as_paper:  # a shard is one media item, or without IRP all of them
        each = item_tokens if system.irp else mm_tokens
    units = (each,) * (mm_tokens // each)
    starts = () if system.as_paper else tuple(range(0, mm_tokens, each))
    asks = (
        workload("offline").asks(1.0, requests)
        if math.isinf(rate)
        else workload("pictures-1").asks(rate, requests, seed)
    )
    prompt = TEXT_TOKENS + mm_tokens
    return [(ask.at_s, RequestSpec(f"r{n}", prompt, output, units, unit_starts=starts)) for n, ask in enumerate(asks)]


def run(system: System, stack: PaperStack, arrivals: list[tuple[float, RequestSpec]], slo: SLO | None = None) -> Report:
    """Serve them."""
    simulation = ready(system, stack, arrivals)
    simulation.run(arrivals)
    return simulation.report(slo)


def ready(
    system: System,
    stack: PaperStack,
    arrivals: list[tuple[float, RequestSpec]],
    controller: ControllerSettings | None = None,
    migrate_s: Mapping[str, float] | None = None,
) -> Simulation:
    """A system that could serve them; see `Simulation`."""
    unit_tokens = next((spec.unit_tokens[0] for _, spec in arrivals if spec.units), SLICE_TOKENS)
    stack = dataclasses.replace(stack, unit_slices=unit_tokens // SLICE_TOKENS)
    blocks = SIZES.mm_blocks * SLICE_TOKENS // unit_tokens
    return Simulation(
        system.mesh,
        system.config(unit_tokens),
        dataclasses.replace(SIZES, mm_blocks=blocks, slots=system.sequences).spec,
        stack,
        irp=system.irp,
        controller=controller,
        migrate_s=migrate_s,
        machine=Machine(in_order=not system.as_paper),  # there KV is pulled beside the steps
    )
