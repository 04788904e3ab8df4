"""Good requests beside bad ones: are they right, and in time, and does the server keep what it took?"""

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from epdjax.planning.benchmarks.abuse.asking import READY, chat_body, picture_part, png

PERIOD_S = 0.5
HEALTH_PERIOD_S = 0.1
ALONE_S = 30.0
SETTLED_S = 10.0
REPETITIONS = 3
GIVE_UP_S = 60.0
MODULE = "epdjax.planning.benchmarks.abuse"


@dataclasses.dataclass
class Beside:
    """Good requests, while something went on.

    Attributes:
        answers_s, health_s: how long each took, seconds.
        sent, right: how many there were, and how many gave the answer they give alone. lost: those without an answer.
    """

    answers_s: list[float] = dataclasses.field(default_factory=list)
    health_s: list[float] = dataclasses.field(default_factory=list)
    sent: int = 0
    right: int = 0
    lost: int = 0

    def late(self, limit_s: float) -> int:
        """Answers that took longer."""
        return sum(seconds > limit_s for seconds in self.answers_s)


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """One kind of abuse.

    Attributes:
        name: of the case. statuses: what the bad client got.
        beside: the good requests meanwhile. late: of them, those that took more than twice the p99 alone.
        p99_s, health_p99_s: of good requests and of ``/health``.
        before_mb, peak_mb, after_mb: PSS of all processes, before, at most, and after each repetition.
    """

    name: str
    statuses: dict[str, int]
    sent: int
    right: int
    late: int
    lost: int
    p99_s: float
    health_p99_s: float
    before_mb: float
    peak_mb: float
    after_mb: tuple[float, ...]

    @property
    def kept_mb(self) -> float:
        """What the last repetition left beyond the first."""
        return self.after_mb[-1] - self.after_mb[0]


@dataclasses.dataclass(frozen=True)
class AbuseReport:
    """All cases, and what good requests take alone (p99, seconds)."""

    p99_s: float
    health_p99_s: float
    cases: tuple[CaseReport, ...]


class Server:
    """The server's process and its children."""

    def __init__(self, model: Path, mesh: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{MODULE}.server", str(model), mesh], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = ""
        while not line.startswith(READY):
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start")
        self.port = int(line.split()[1])

    def pss_mb(self) -> float:
        """Memory of the server and all its children, shared pages counted by halves."""
        kib = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _family(self) -> Iterator[int]:
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task").glob("*/children")
                waiting += [int(child) for file in children for child in file.read_text().split()]


def run(model: Path, mesh: str, names: Sequence[str], tell: Callable[[str], None]) -> AbuseReport:
    """Abuse a server in each way that is named."""
    server = Server(model, mesh)
    try:
        return asyncio.run(_run(server, names, tell))
    finally:
        server.close()


async def _run(server: Server, names: Sequence[str], tell: Callable[[str], None]) -> AbuseReport:
    good = _Good(server.port)
    await good.learn()
    alone = Beside()
    await good.beside(asyncio.sleep(ALONE_S), alone)
    p99, health_p99 = _p99(alone.answers_s), _p99(alone.health_s)
    tell(f"alone: p99 {p99:.3f} s, /health {health_p99:.4f} s, {alone.right} of {alone.sent} right")
    cases = []
    for name in names:
        cases.append(await _case(server, good, name, p99))
        tell(_line(cases[-1]))
    await good.close()
    return AbuseReport(p99, health_p99, tuple(cases))


async def _case(server: Server, good: "_Good", name: str, p99_s: float) -> CaseReport:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{MODULE}.cases", name, str(server.port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    commands, answers = process.stdin, process.stdout
    await answers.readline()
    before, peak, after = server.pss_mb(), [0.0], []
    watcher = asyncio.create_task(_watch(server, peak))
    beside, statuses = Beside(), {}
    for _ in range(REPETITIONS):

        async def attack() -> dict[str, int]:
            commands.write(b"go\n")
            return dict(json.loads(await answers.readline()))

        statuses = await good.beside(attack(), beside)
        await asyncio.sleep(SETTLED_S)
        after.append(server.pss_mb())
    watcher.cancel()
    commands.close()
    await process.wait()
    return CaseReport(
        *(name, statuses, beside.sent, beside.right, beside.late(2 * p99_s), beside.lost),
        *(_p99(beside.answers_s), _p99(beside.health_s), before, max(peak), tuple(after)),
    )


class _Good:
    """A client that asks the same few questions over and over."""

    def __init__(self, port: int):
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=GIVE_UP_S)
        text = {"type": "text", "text": "How many red circles are there?"}
        self._bodies = [
            chat_body("What can you see?", temperature=0),
            *(chat_body([picture_part(png(80 + i, 80, i)), text], temperature=0) for i in range(2)),
        ]
        self._answers: list[str] = []

    async def learn(self) -> None:
        """What the answers are, while nobody else is there; also warms everything up."""
        for _ in range(3):
            self._answers = [(await self._ask(body))[0] for body in self._bodies]

    async def beside(self, work: Any, report: Beside) -> Any:
        """Ask every half second until some work is done, and look at ``/health`` all the time."""
        asking: set[asyncio.Task[None]] = set()
        doing = asyncio.ensure_future(work)
        looking = asyncio.create_task(self._look(report))
        began, count = time.monotonic(), 0
        while not doing.done():
            asking.add(asyncio.create_task(self._count(count % len(self._bodies), report)))
            count += 1
            await asyncio.wait([doing], timeout=max(0.0, began + count * PERIOD_S - time.monotonic()))
        await asyncio.gather(*asking)
        looking.cancel()
        return await doing

    async def close(self) -> None:
        await self._client.aclose()

    async def _count(self, index: int, report: Beside) -> None:
        report.sent += 1
        try:
            answer, seconds = await self._ask(self._bodies[index])
        except (httpx.HTTPError, KeyError, ValueError):
            report.lost += 1
            return
        report.right += answer == self._answers[index]
        report.answers_s.append(seconds)

    async def _ask(self, body: bytes) -> tuple[str, float]:
        began = time.monotonic()
        headers = {"content-type": "application/json"}
        answer = await self._client.post("/v1/chat/completions", content=body, headers=headers)
        return answer.json()["choices"][0]["message"]["content"], time.monotonic() - began

    async def _look(self, report: Beside) -> None:
        while True:
            began = time.monotonic()
            await self._client.get("/health")
            report.health_s.append(time.monotonic() - began)
            await asyncio.sleep(HEALTH_PERIOD_S)


async def _watch(server: Server, peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], await asyncio.to_thread(server.pss_mb))
        await asyncio.sleep(0.2)


def _p99(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) if seconds else float("nan")


def _line(case: CaseReport) -> str:
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(case.statuses.items()))
    after = ", ".join(f"{mb:.0f}" for mb in case.after_mb)
    return (
        f"{case.name}: bad client got {statuses}; good: {case.sent} sent, {case.right} right, {case.late} late, "
        f"{case.lost} lost, p99 {case.p99_s:.3f} s, /health {case.health_p99_s:.4f} s; PSS {case.before_mb:.0f} MB, at "
        f"most {case.peak_mb:.0f}, after {after}"
    )
