"""Role switching on a live engine: the paper's experiment scaled down, and what switches take."""

import concurrent.futures
import dataclasses
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.mesh.places import spec_of
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.llm import LLM
from epdjax.serving.params import SamplingParams
from epdjax.serving.switching import SwitchReport

START = "5E1P2D"
TIMED = "2E2P2D"
# There and back between each two roles, from there: (what is asked of which instance, what it is called).
CYCLES = (
    (("i1", "D"), ("i1", "P")),
    (("i1", "E"), ("i0", "P")),
    (("i3", "E"), ("i0", "D")),
)


@dataclasses.dataclass(frozen=True)
class LiveOutcome:
    """Means over all requests, and the layouts it went through with the seconds at which each was reached."""

    latency_s: float
    tpot_s: float
    tokens_per_s: float
    layouts: tuple[tuple[float, str], ...]


def run_live(model: Path, switching: str, requests: int, rate: float, answer: int, progress: Any = None) -> LiveOutcome:
    """Pictures with short answers, then with long ones, on eight virtual devices.

    Args:
        model: checkpoint folder.
        switching: see `EngineConfig.role_switching`.
        requests: of them a tenth have answers of a tenth of `answer` tokens, and come first.
        rate: of arrivals, per second.
    """
    settings = ControllerSettings(horizon_s=5.0, min_gain_s=0.5, cooldown_s=1.0, interval_s=0.5, keeps_up=0.7)
    rng = random.Random(0)
    with LLM(
        model,
        START,
        max_model_len=512,
        max_seqs=8,
        buckets="trimmed",
        role_switching=switching,
        controller=settings,
        progress=progress,
    ) as llm:
        began = time.monotonic()
        layouts = [(0.0, str(spec_of(llm.deployment.places)))]

        def ask(number: int) -> tuple[float, int]:
            tokens = answer // 10 if number < requests // 10 else answer
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
            came = time.monotonic()
            llm.chat(_question(number), params)
            return time.monotonic() - came, tokens

        with concurrent.futures.ThreadPoolExecutor(requests) as clients:
            futures = []
            for number in range(requests):
                futures.append(clients.submit(ask, number))
                time.sleep(rng.expovariate(rate))
                mesh = str(spec_of(llm.deployment.places))
                if mesh != layouts[-1][1]:
                    layouts.append((round(time.monotonic() - began, 1), mesh))
            done = [future.result() for future in futures]
        seconds = time.monotonic() - began
    return LiveOutcome(
        statistics.fmean(latency for latency, _ in done),
        statistics.fmean(latency / tokens for latency, tokens in done),
        sum(tokens for _, tokens in done) / seconds,
        tuple(layouts),
    )


def switch_times(folder: Path, repeats: int) -> dict[str, SwitchReport]:
    """Medians of what each kind of switch takes on `TIMED` while some sequences are being decoded; programs are
    compiled by a first round, whose time is reported as preparation."""
    reports: dict[str, list[SwitchReport]] = {}
    with LLM(folder, TIMED, max_model_len=512, max_seqs=4, buckets="trimmed") as llm:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        for _ in range(1 + repeats):
            for cycle in CYCLES:
                with concurrent.futures.ThreadPoolExecutor(4) as clients:
                    answers = [clients.submit(llm.chat, _question(number), params) for number in range(4)]
                    while llm._engine.counts().get("decoding", 0) < 4 and not all(a.done() for a in answers):
                        time.sleep(0.005)
                    for name, roles in cycle:
                        report = llm.switch_roles(name, roles)
                        kind = f"{report.plan.removes} -> {report.plan.adds}"
                        reports.setdefault(kind, []).append(report)
    return {kind: _median(some) for kind, some in reports.items()}


def _median(reports: list[SwitchReport]) -> SwitchReport:
    first, *rest = reports
    fields = ("offload_s", "migrate_s", "onload_s")
    medians = {name: statistics.median(getattr(report, name) for report in rest) for name in fields}
    return dataclasses.replace(first, **medians)  # type: ignore[arg-type]


def _question(number: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng(number).integers(0, 256, (90, 90, 3), np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(noise)}, {"type": "text", "text": f"picture {number}?"}]
    return [{"role": "user", "content": parts}]
