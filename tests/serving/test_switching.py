"""Roles change while requests are served: the same tokens, nothing lost, nothing compiled by those who serve."""

import concurrent.futures
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from epdjax import LLM, SamplingParams
from epdjax.mesh.places import spec_of
from epdjax.serving import role_plans
from epdjax.serving.audit import audit
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.errors import EngineEnded, ServiceUnavailable
from epdjax.serving.role_plans import SwitchRefused
from epdjax.serving.workshop import Workshop
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ASKED = [*CONVERSATIONS.values(), ask("the hat", picture(40, 40, 7)), ask("on a tan cat", picture(90, 30, 8))]


class Crowd:
    """Clients that ask one thing after the other while they are there; each answer is compared."""

    def __init__(self, llm: LLM, expected: list[tuple[int, ...]], clients: int = 4):
        self.llm, self.expected, self.going, self.answers = llm, expected, True, 0
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.clients = [self.pool.submit(self.ask, client) for client in range(clients)]

    def ask(self, client: int) -> None:
        for turn in itertools.count(client):
            if not self.going:
                return
            number = turn % len(ASKED)
            answer = self.llm.chat(ASKED[number], GREEDY)[0].outputs[0].token_ids
            assert answer == self.expected[number], f"conversation {number}"
            self.answers += 1

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Or until the clients have ended, which they only do for a reason."""
        while not condition() and any(not client.done() for client in self.clients):
            time.sleep(0.01)

    def wait_for(self, answers: int) -> None:
        """So many more."""
        most = self.answers + answers
        self.wait_until(lambda: self.answers >= most)

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        for client in self.clients:
            client.result(120)
        self.pool.shutdown()


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[tuple[int, ...]]:
    with make_llm(checkpoint, "1EPD") as llm:
        return [llm.chat(asked, GREEDY)[0].outputs[0].token_ids for asked in ASKED]


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[LLM]:
    with make_llm(checkpoint, "2E2P2D") as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """i0 is a group of two encoders, i1 and i2 prefill, i3 and i4 decode; before each test and after it."""
    before = {place.name: place.roles for place in shared.deployment.places}
    yield shared
    settle(shared)
    for name in ("i1", "i3"):
        if shared.deployment.instances[name].roles != before[name]:
            shared.switch_roles(name, before[name])
    assert {place.name: place.roles for place in shared.deployment.places} == before


def settle(llm: LLM) -> None:
    """All is given back."""
    scheduler = llm._engine.scheduler
    assert llm._engine.call(lambda: scheduler.idle)
    audit(scheduler)
    assert llm.deployment.compiles_after_ready == 0


def mesh(llm: LLM) -> str:
    return str(spec_of(llm.deployment.places))


def test_every_kind_of_switch_under_load(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    steps = [
        ("i1", "D", "2E1P3D"),
        ("i1", "P", "2E2P2D"),
        ("i3", "P", "2E3P1D"),
        ("i3", "E", "3E2P1D"),
        ("i0", "D", "2E2P2D"),
        ("i3", "PD", "2E2P1PD1D"),
        ("i4", "EPD", "2E1EPD2P1PD"),
        ("i4", "D", "2E2P1PD1D"),
        ("i3", "D", "2E2P2D"),
        ("i2", "E", "3E1P2D"),
        ("i0", "P", "2E2P2D"),
    ]
    with Crowd(llm, expected) as crowd:
        for name, roles, after in steps:
            report = llm.switch_roles(name, roles)
            assert mesh(llm) == after, report.plan
            assert set(llm.deployment.instances) == {place.name for place in llm.deployment.places}
            crowd.wait_for(4)
    assert crowd.answers > 4 * len(steps)


def test_what_others_encoded_can_land_on_one_that_has_come_to_encode(llm: LLM) -> None:
    llm.switch_roles("i1", "EP")
    pieces = {key[1][0] for key in llm.deployment.instances["i1"].programs if key[0] == "land_mm"}
    assert pieces == {1, 2}


def test_a_second_switch_there_and_back_compiles_nothing(llm: LLM) -> None:
    for roles in "DP":
        llm.switch_roles("i1", roles)
    again = [llm.switch_roles("i1", roles) for roles in "DP"]
    assert [report.compiled for report in again] == [0, 0]
    assert all(report.moved_bytes == 0 for report in again), "the language model stays where it is"


def test_what_is_on_a_device_is_not_copied(llm: LLM) -> None:
    leaf = llm.deployment.instances["i1"].parts["language_model"][1][0]
    pool = llm.deployment.instances["i1"].pools[0]
    where = [array.unsafe_buffer_pointer() for array in (leaf, pool)]
    llm.switch_roles("i1", "D")
    made = llm.deployment.instances["i1"]
    assert [a.unsafe_buffer_pointer() for a in (made.parts["language_model"][1][0], made.pools[0])] == where


def test_memory_is_what_it_was(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    def live() -> int:
        """Bytes; copies on several virtual devices of a CPU may be one array."""
        gc.collect()
        shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards]
        return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())

    sizes = []
    for _ in range(3):
        for name, roles in (("i1", "E"), ("i0", "P"), ("i3", "P"), ("i3", "D")):
            llm.switch_roles(name, roles)
        llm.chat(ASKED, GREEDY)
        assert mesh(llm) == "2E2P2D"
        sizes.append(live())
    assert max(sizes) - min(sizes) < 2**16, sizes


@pytest.mark.parametrize(
    ("name", "roles", "why"),
    [
        ("i9", "D", "there is no instance 'i9'; there are i0, i1, i2, i3, i4"),
        ("i1", "X", "roles must be some of E"),
        ("i1", "", "roles must be some of E"),
        ("i1", "PP", "each once"),
        ("i1", "P", "i1 performs prefill already"),
    ],
)
def test_refused(llm: LLM, name: str, roles: str, why: str) -> None:
    places = list(llm.deployment.places)
    with pytest.raises(SwitchRefused, match=why):
        llm.switch_roles(name, roles)
    assert llm.deployment.places == places


def test_the_last_of_a_stage_is_not_taken(checkpoint: Path) -> None:
    with make_llm(checkpoint, "1E1P1D") as llm:
        with pytest.raises(SwitchRefused, match="nobody would prefill"):
            llm.switch_roles("i1", "D")
        plan = llm.switch_roles("i1", "PD", dry_run=True)
        assert (plan.removes, plan.adds) == ("", "D")
        assert mesh(llm) == "1E1P1D"
        llm.switch_roles("i1", "PD")
        llm.switch_roles("i2", "E")
        assert mesh(llm) == "2E1PD"
        assert llm.chat(ASKED[1], GREEDY)[0].finished


def test_one_at_a_time(llm: LLM) -> None:
    engine = llm._engine
    first = engine.switch(llm.switch_roles("i1", "D", dry_run=True))
    with pytest.raises(SwitchRefused, match="another switch is under way"):
        llm.switch_roles("i2", "E")
    first.result(60)


def test_not_while_shutting_down(checkpoint: Path) -> None:
    llm = make_llm(checkpoint, "1E2P1D")
    plan = llm.switch_roles("i1", "D", dry_run=True)
    llm.shutdown()
    with pytest.raises(EngineEnded, match="shut"):
        llm._engine.switch(plan)
    with pytest.raises(EngineEnded, match="shut"):
        llm._engine.call(lambda: None)


@pytest.mark.slow
def test_a_switch_that_fails_changes_nothing(llm: LLM, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from epdjax.serving.switching import Switching

    def fails(*_: object) -> None:
        raise MemoryError("no room for the parameters")

    monkeypatch.setattr(Switching, "_parameters", fails)
    with Crowd(llm, expected):
        for name, roles in (("i1", "E"), ("i3", "P"), ("i0", "D")):
            with pytest.raises(MemoryError):
                llm.switch_roles(name, roles)
            assert mesh(llm) == "2E2P2D"
    assert llm.chat(ASKED[1], GREEDY)[0].outputs[0].token_ids == expected[1]


def test_a_role_that_memory_does_not_hold(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> int:
        raise ValueError("a sequence of full length takes 16 KV blocks and the device's memory leaves room for 3")

    monkeypatch.setattr(Workshop, "kv_blocks", short)
    with pytest.raises(SwitchRefused, match="cannot be made: a sequence of full length"):
        llm.switch_roles("i0", "P")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "advise"])
def test_the_controller(
    checkpoint: Path,
    expected: list[tuple[int, ...]],
    mode: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that switches at the least occasion: answers stay the same, and with `advise` so does the layout."""
    eager = ControllerSettings(
        interval_s=0.1, cooldown_s=0.2, horizon_s=1.0, min_gain_s=0.0, hysteresis=1.0, keeps_up=0.0, sustain=1
    )
    monkeypatch.setattr(role_plans, "FIRST_COST_S", 0.0)
    with make_llm(checkpoint, "3E2P2D", role_switching=mode, controller=eager) as llm:
        engine, looking = llm._engine, concurrent.futures.ThreadPoolExecutor(1)
        with caplog.at_level(logging.INFO, "epdjax.serving.steering"):
            answers = looking.submit(llm.chat, ASKED * 40, GREEDY)
            while not (answers.done() or engine.switching.history or "advice: " in caplog.text):
                time.sleep(0.01)
            assert [output.outputs[0].token_ids for output in answers.result(240)] == expected * 40
        engine.switching.join(60)
        assert bool(engine.switching.history) == (mode == "auto")
        assert (mesh(llm) == "3E2P2D") == (mode == "advise")
        assert "gain_s" in caplog.text
        settle(llm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i0", "i1", "i2", "i3", "i4"])
def test_an_instance_that_dies(checkpoint: Path, expected: list[tuple[int, ...]], name: str) -> None:
    """Every step raises from now on. No request notices; the instance is taken out, and can come back."""
    with make_llm(checkpoint, "2E2P2D") as llm:
        kill(llm, expected, name)
        settle(llm)


def kill(llm: LLM, expected: list[tuple[int, ...]], name: str) -> None:
    instance = llm.deployment.instances[name]
    programs = dict(instance.programs)

    def dead(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with Crowd(llm, expected, clients=6) as crowd:
        crowd.wait_for(4)
        instance.programs.update(dict.fromkeys(programs, dead))
        crowd.wait_until(lambda: name not in llm.deployment.instances)
        crowd.wait_for(24)
    assert "its steps fail" in llm._engine.outages.lost[name].why
    instance.programs.update(programs)
    for shelf, program in list(llm.deployment.programs.items()):
        assert program is not dead, shelf
    llm._engine.switching.join(60)
    llm.switch_roles(name, "E" if name == "i0" else "P")
    assert name not in llm._engine.outages.lost
    assert [llm.chat(asked, GREEDY)[0].outputs[0].token_ids for asked in ASKED] == expected


@pytest.mark.slow
def test_an_instance_that_hangs(checkpoint: Path, expected: list[tuple[int, ...]]) -> None:
    """Its steps never end. What was under way there is done again elsewhere; what it says later is not heard."""
    with make_llm(checkpoint, "1E1P2D", hang_s=5.0) as llm:
        late: list[Callable[[], None]] = []
        waiter = llm._engine.call(lambda: llm._engine.waiters.of("i2", "compute"))
        with Crowd(llm, expected) as crowd:
            crowd.wait_for(4)
            waiter.watch = lambda arrays, _, report: late.append(  # type: ignore[method-assign]
                lambda: report(jax.device_get(arrays), None)
            )
            crowd.wait_until(lambda: "i2" not in llm.deployment.instances)
            for call in late:
                call()
            crowd.wait_for(12)
        assert "has not ended within 5 s" in llm._engine.outages.lost["i2"].why
        assert late
        settle(llm)


def test_nobody_left(checkpoint: Path, expected: list[tuple[int, ...]]) -> None:
    with make_llm(checkpoint, "1EPD") as llm:
        llm._engine.call(lambda: llm._engine.outages.take_out("i0", "pulled out"))
        llm._engine.switching.join(60)
        with pytest.raises(ServiceUnavailable, match="encode and prefill and decode"):
            llm.chat(ASKED[0], GREEDY)
        llm.switch_roles("i0", "EPD")
        assert llm.chat(ASKED[0], GREEDY)[0].outputs[0].token_ids == expected[0]
