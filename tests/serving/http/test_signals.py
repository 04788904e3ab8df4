"""What SIGTERM does to a server process."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

CODE = """
import sys
from epdjax.serving.http import bind, create_app, serve
from tests.serving.http.scripted import ScriptedEngine
ready = lambda host, port: print("http://%s:%d" % (host, port), flush=True)
sys.exit(serve(create_app(ScriptedEngine()), bind("127.0.0.1", 0), drain_timeout_s=10, on_ready=ready))
"""


class Process:
    """A server process; two are started before either is asked, as most of a start is imports."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
        )

    def address(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() + "/v1/chat/completions"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def exit_status(self) -> int:
        return self._process.wait(10)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    processes = [Process(), Process()]
    yield processes
    for process in processes:
        process.end()


def body(text: str) -> dict[str, object]:
    return {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": text}]}


def test_the_first_signal_lets_a_stream_finish(processes: list[Process]) -> None:
    process = processes[0]
    with httpx.stream("POST", process.address(), json=body("count 20 slow"), timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        process.send(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert process.exit_status() == 0


def test_the_second_signal_does_not_wait(processes: list[Process]) -> None:
    process = processes[1]
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", process.address(), json=body("stuck"), timeout=20) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send(signal.SIGINT)
        time.sleep(0.3)
        assert process.running()
        process.send(signal.SIGTERM)
        list(lines)
    assert process.exit_status() == 128 + signal.SIGTERM
