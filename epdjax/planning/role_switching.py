"""The EPD paper's experiment on role switching (its table 6): pictures with short answers, then with long ones.

100 requests at 3 a second, each with one 4K picture; the first 10 are answered with 50 tokens, the others with 500.
The devices start as 5E1P2D; the paper ends at 2E1P5D.
"""

import dataclasses
import random
import statistics
from collections.abc import Callable

from epdjax.planning.machine import Machine
from epdjax.planning.metrics import Timeline
from epdjax.planning.simulator import Seconds, Simulation, Sizes, Switched
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import default_buckets
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, Encode, Prefill, Work

START = "5E1P2D"
PAPER_OFF = {"latency_s": 61.10, "ttft_s": 1.33, "tpot_s": 0.12}
PAPER_ON = {"latency_s": 28.01, "ttft_s": 1.42, "tpot_s": 0.05}
SLICES, SLICE_TOKENS, TEXT_TOKENS = 10, 64, 22  # MiniCPM-V 2.6 and a picture of 4032 x 3024
MIGRATE_S = {"E": 0.2, "P": 0.2, "D": 0.2}  # parameters of an 8B model over a link of 100 GB/s, roughly


@dataclasses.dataclass(frozen=True)
class PaperCosts:
    """Seconds that work takes in the paper's stack on an A100.

    Attributes:
        encode_s: of a picture; the paper states about 0.47 s for each further one of a request.
        prefill_s: of a prompt with one. decode_s: of a step, plus `decode_row_s` for each sequence in it.
        move_s: of any move.
    """

    encode_s: float = 0.47
    prefill_s: float = 0.2
    decode_s: float = 0.02
    decode_row_s: float = 0.002
    move_s: float = 0.01

    def __call__(self, work: Work, instance: InstanceSpec) -> float:
        match work:
            case Encode():
                return self.encode_s / SLICES * len(work.units) / instance.encode_width
            case Prefill():
                tokens = sum(chunk.length for chunk in work.chunks)
                return self.prefill_s * tokens / (SLICES * SLICE_TOKENS + TEXT_TOKENS)
            case Decode():
                return self.decode_s + self.decode_row_s * len(work.sequences)
        return self.move_s


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Means over all requests, and the switches that were made."""

    latency_s: float
    ttft_s: float
    tpot_s: float
    switches: tuple[Switched, ...]
    mesh: str


def requests(seed: int, count: int = 100, rate: float = 3.0) -> list[tuple[float, RequestSpec]]:
    """The paper's load, Poisson."""
    rng, at, made = random.Random(seed), 0.0, []
    prompt = SLICES * SLICE_TOKENS + TEXT_TOKENS
    for number in range(count):
        at += rng.expovariate(rate)
        made.append((at, RequestSpec(f"r{number}", prompt, 50 if number < 10 else 500, (SLICE_TOKENS,) * SLICES)))
    return made


def run(seconds: Seconds, *, switching: bool, seed: int = 0, settings: ControllerSettings | None = None) -> Outcome:
    """The experiment once.

    Args:
        settings: of the controller, other than its defaults.
    """
    buckets = default_buckets(max_model_len=2048, block_size=16, max_chunk=1024, max_seqs=64, max_units=SLICES)
    simulation = Simulation(
        START,
        SchedulerConfig(buckets, mm_block_size=SLICE_TOKENS),
        Sizes(kv_blocks=64 * 128, mm_blocks=3000, slots=64).spec,
        seconds,
        controller=(settings or ControllerSettings()) if switching else None,
        migrate_s=MIGRATE_S,
        machine=Machine(in_order=False),  # in the paper's stack KV is pulled beside the steps
    )
    timelines = list(simulation.run(requests(seed)).values())
    return Outcome(
        _mean(timelines, lambda t: t.latency_s),
        _mean(timelines, lambda t: t.ttft_s),
        _mean(timelines, lambda t: t.tpot_s),
        tuple(simulation.switches),
        simulation.mesh,
    )


def fitted(seed: int = 0) -> PaperCosts:
    """Costs with which the run without switching has the paper's time per token; nothing else is fitted."""
    low, high = 0.0, 0.05
    for _ in range(20):
        middle = (low + high) / 2
        tpot_s = run(PaperCosts(decode_row_s=middle), switching=False, seed=seed).tpot_s
        low, high = (middle, high) if tpot_s < PAPER_OFF["tpot_s"] else (low, middle)
    return PaperCosts(decode_row_s=low)


def _mean(timelines: list[Timeline], value: Callable[[Timeline], float]) -> float:
    return statistics.fmean(value(timeline) for timeline in timelines)
