"""The engine's last words: every client hears of the end and every thread ends, whatever goes wrong meanwhile."""

import concurrent.futures
import functools
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from epdjax import SamplingParams
from epdjax.mesh.places import Place
from epdjax.serving import status
from epdjax.serving.errors import EngineEnded, ServiceUnavailable
from epdjax.serving.outages import Lost
from epdjax.serving.switching import Switching
from epdjax.serving.waiter import Waiter, Waiters
from tests.serving.deployments import ask, eventually, make_llm

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


def fails() -> None:
    raise RuntimeError("a bug")


def test_everybody_is_told_whatever_else_goes_wrong(checkpoint: Path) -> None:
    with make_llm(checkpoint, "1EPD") as llm:
        engine, heard, gate = llm._engine, [], threading.Event()

        def sink(output: Any) -> None:
            if isinstance(output, ServiceUnavailable):
                heard.append(output.message)

        def bad_sink(output: Any) -> None:
            raise RuntimeError("the event loop is closed")

        def request(name: str, where: Any = sink) -> Any:
            return llm._request(name, llm._preparer.chat(ask("the hat")), LONG, where)

        engine.submit(request("running"))
        eventually(lambda: bool(engine.counts().get("decoding")))
        held = [engine.waiters.of("i0", "compute")]
        requests = [request(name) for name in ("before", "after", "last")]
        deaf = request("deaf", bad_sink)
        engine.post(gate.wait)
        engine.submit(requests[0])
        engine.post(fails)  # here the loop ends
        engine.submit(deaf)
        engine.post(fails)
        engine.submit(requests[1])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(engine.call, fails)
            eventually(lambda: engine._inbox.qsize() >= 5)
            engine.post(fails)
            engine.submit(requests[2])
            gate.set()
            with pytest.raises(RuntimeError, match="a bug"):
                asked.result(30)
        engine._thread.join(30)
        assert len(heard) == 4 and not engine.live
        assert sum("the engine has failed: RuntimeError('a bug')" in message for message in heard) >= 2
        assert not any(waiter.is_alive for waiter in held)
        assert not status.health(engine, False).ok
        with pytest.raises(EngineEnded):
            engine.call(lambda: None)


def test_what_other_threads_read_may_change_meanwhile(checkpoint: Path) -> None:
    """The operator looks at instances that come and go, while programs are compiled for one that is being probed."""
    with make_llm(checkpoint, "1EPD") as llm:
        engine, instance = llm._engine, llm.deployment.instances["i0"]
        going, errors = True, []

        def come_and_go(number: int) -> None:
            place, outages = Place(f"x{number % 50}", "", (number % 8,)), engine.outages
            outages.lost = {**outages.lost, place.name: Lost(place, "")}
            outages.came_back(f"x{(number + 25) % 50}")

        def change() -> None:
            number = 0
            while going:
                number += 1
                engine.call(functools.partial(come_and_go, number))

        def compile() -> None:
            number = 0
            while going:
                number += 1
                instance.programs["encode", (10**6 + number % 1000, 10**6)] = None
                instance.programs.pop(("encode", (10**6 + (number + 500) % 1000, 10**6)), None)

        def ask_for_state() -> None:
            try:
                for _ in range(300):
                    engine.places, status.health(engine, False), status.roles(engine)
                for _ in range(40):
                    engine.call(lambda: jax.block_until_ready(instance.probe()))
            except RuntimeError as error:
                errors.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=target) for target in (change, compile)]
        try:
            for thread in threads:
                thread.start()
            ask_for_state()
        finally:
            going = False
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)
        assert not errors


class Slow:
    """A result that is there when told so."""

    def __init__(self) -> None:
        self.there = threading.Event()

    def block_until_ready(self) -> "Slow":
        self.there.wait(30)
        return self


def test_a_waiter_that_is_held_up_is_replaced() -> None:
    waiters, reports = Waiters(), []
    hung, behind = Slow(), Slow()
    behind.there.set()
    first = waiters.of("i1", "move")
    first.watch(hung, False, lambda *_: reports.append("late"))
    eventually(lambda: first._queue.empty())
    first.watch(behind, False, lambda *_: reports.append("behind"))
    waiters.renew("i1", "move")
    eventually(lambda: reports == ["behind"])
    assert waiters.of("i1", "move") is not first
    hung.there.set()
    eventually(lambda: not first.is_alive)
    assert reports == ["behind", "late"]
    waiters.stop()


def test_an_instance_that_comes_back_has_waiters_of_its_own() -> None:
    waiters = Waiters()
    hung = Slow()
    before = [waiters.of("i1", lane) for lane in ("compute", "move")]
    before[0].watch(hung, False, lambda *_: None)
    waiters.drop("i1")
    assert not {waiters.of("i1", lane) for lane in ("compute", "move")} & set(before)
    hung.there.set()
    waiters.stop()
    assert not any(waiter.is_alive for waiter in before)


def test_all_threads_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epdjax.serving.waiter.STOP_TIMEOUT_S", 0.2)
    waiters, hung, waits = Waiters(), Slow(), []
    for number in range(3):
        waiters.of(f"i{number}", "compute").watch(hung, False, lambda *_: None)
    join = Waiter.join
    monkeypatch.setattr(Waiter, "join", lambda self, s: (waits.append(s), join(self, s))[1])
    waiters.stop()
    assert len(waits) == 3 and waits[0] <= 0.2 and waits[-1] == 0.0
    hung.there.set()


def test_a_rescue_that_fails_says_where(caplog: pytest.LogCaptureFixture) -> None:
    """And so does one that cannot be told to the engine."""
    places = [Place("i0", "E", (0,)), Place("i1", "P", (1,))]
    workshop = SimpleNamespace(config=SimpleNamespace(irp=True))
    host: Any = SimpleNamespace(deployment=SimpleNamespace(places=places, instances={}, workshop=workshop))
    host.give_up, host.call = fails, lambda function: function()
    switching = Switching(host)
    switching.rescue()
    switching.join(30)
    assert "no rescue by" in caplog.text and "the rescue has failed" in caplog.text
    assert all(record.exc_info for record in caplog.records) and len(caplog.records) >= 2
    assert switching.current is None and switching._one_at_a_time.acquire(blocking=False)


def test_threads_of_switches_are_all_waited_for() -> None:
    switching, gate = Switching(SimpleNamespace()), threading.Event()  # type: ignore[arg-type]
    threads = [threading.Thread(target=gate.wait) for _ in range(40)]
    starters = [threading.Thread(target=switching._begin, args=(thread,)) for thread in threads]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert set(switching._threads) == set(threads)
    gate.set()
    switching.join(30)
    assert not any(thread.is_alive() for thread in threads)
