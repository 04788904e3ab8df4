"""A list of requests of one caller: prepared ahead but not all at once, and errors in the place of answers."""

import dataclasses
import threading
from typing import Any

import pytest

from epdjax.serving.batch import Batch, Load, Room
from epdjax.serving.errors import InvalidRequest, RequestError
from epdjax.serving.outputs import RequestOutput
from tests.serving.deployments import eventually


@dataclasses.dataclass
class FakeSpec:
    request_id: str
    units: int = 0
    media_bytes: int = 0


class FakeRequest:
    def __init__(self, index: int, sink: Any, units: int):
        self.spec, self.sink, self.followers = FakeSpec(f"r{index}", units, 10 * units), sink, []


class FakeEngine:
    """Answers when it is told to; counts what was prepared and what runs."""

    def __init__(self, units: int = 0, at_once: bool = True):
        self.units, self.at_once = units, at_once
        self.prepared: list[int] = []
        self.last = 0  # item that was to be handed over
        self.running: dict[str, FakeRequest] = {}
        self.most_running = 0
        self.aborted: list[str] = []

    def prepare(self, index: int) -> int:
        self.prepared.append(index)
        if index % 10 == 7:
            raise InvalidRequest(f"item {index} is bad")
        return index

    def request(self, index: int, prepared: int, sink: Any) -> Any:
        assert prepared == index
        self.last = index
        if index % 10 == 8:
            raise InvalidRequest(f"the settings of item {index} are bad")
        return FakeRequest(index, sink, self.units)

    def submit(self, request: Any) -> None:
        self.running[request.spec.request_id] = request
        self.most_running = max(self.most_running, len(self.running))
        if self.at_once:
            self.finish(request.spec.request_id)

    def finish(self, request_id: str) -> None:
        self.running.pop(request_id).sink(RequestOutput(request_id, 1, (), True))

    def batch(self, most: Load, threads: int = 2) -> Batch[int]:
        return Batch(self.prepare, self.request, self.submit, self.aborted.append, room=Room(most), threads=threads)


MANY = Load(1000, 1000, 10_000)
AHEAD = 2 * 2 + 1  # items that two threads may prepare before their turn, and one that is bad


def test_errors_take_the_place_of_bad_items() -> None:
    answers = FakeEngine().batch(MANY).run(20)
    for index, answer in enumerate(answers):
        if index % 10 in (7, 8):
            assert isinstance(answer, RequestError) and f"item {index}" in answer.message
        else:
            assert isinstance(answer, RequestOutput) and answer.request_id == f"r{index}"


@pytest.mark.parametrize("most", [Load(3, 1000, 10_000), Load(1000, 6, 10_000), Load(1000, 1000, 60)])
def test_a_long_list_waits_for_room(most: Load) -> None:
    """Of requests, of units, of bytes: no more than three requests of two units and twenty bytes at a time; and no more
    is prepared than a few items ahead."""
    engine = FakeEngine(units=2, at_once=False)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(engine.batch(most).run(60)))
    thread.start()
    done = 0
    while done < 48:
        eventually(lambda left=48 - done: len(engine.running) == min(3, left))
        assert max(engine.prepared) <= engine.last + AHEAD
        engine.finish(next(iter(engine.running)))
        done += 1
    thread.join(60)
    assert len(answers) == 60 and engine.most_running == 3


def test_what_is_too_large_for_all_room_goes_alone() -> None:
    engine = FakeEngine(units=100)
    assert all(isinstance(answer, RequestOutput) for answer in engine.batch(Load(2, 4, 40)).run(5))
    assert engine.most_running == 1


def test_an_interruption_ends_what_runs() -> None:
    engine = FakeEngine(at_once=False)
    real = engine.submit

    def submit(request: Any) -> None:
        real(request)
        if len(engine.running) == 3:
            raise KeyboardInterrupt

    engine.submit = submit  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.batch(MANY).run(100)
    assert sorted(engine.aborted) == ["r0", "r1", "r2"]
    assert len(engine.prepared) < 20
