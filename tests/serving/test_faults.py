"""Something fails for one request, or one instance: who is concerned hears of it in so many words, others answer as
ever, and nothing stays held."""

import concurrent.futures
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from epdjax import LLM, SamplingParams
from epdjax.serving import instance as instances
from epdjax.serving.audit import audit
from epdjax.serving.errors import AnswerFailed, NotFinite, PreprocessingFailed, RequestError, StepFailed
from epdjax.serving.instance import Instance
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.waiter import Waiter
from tests.serving.deployments import CONVERSATIONS, ask, eventually, make_llm, picture

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
BYSTANDER = ask("the hat on a tan cat")
VICTIM = ask("the cat?", picture(60, 40, 5))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with make_llm(checkpoint, "1E1P1D") as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> dict[str, tuple[int, ...]]:
    """What both answer when nothing fails."""
    return {
        "bystander": llm.chat(BYSTANDER, LONG)[0].outputs[0].token_ids,
        "victim": llm.chat(VICTIM, GREEDY)[0].outputs[0].token_ids,
    }


@pytest.fixture(autouse=True)
def nothing_is_cached_and_nothing_stays_held(llm: LLM, expected: dict) -> Iterator[None]:
    for ledger in llm._engine.scheduler.instances.values():
        for pool in ledger.pools.values():
            pool.forget()
    yield
    assert llm.chat(VICTIM, GREEDY)[0].outputs[0].token_ids == expected["victim"], "afterwards all is well"
    assert llm._engine.scheduler.idle
    audit(llm._engine.scheduler)


def start(
    llm: LLM,
    messages: Any,
    params: SamplingParams,
    change: Callable[[Any], None] = lambda request: None,
    request_id: str | None = None,
) -> Any:
    """A request under way; its future result. `change` may tamper with it."""
    future: concurrent.futures.Future[RequestOutput] = concurrent.futures.Future()

    def sink(output: RequestOutput | RequestError) -> None:
        if isinstance(output, RequestError):
            future.set_exception(output)
        elif output.finished:
            future.set_result(output)

    request = llm._request(request_id, llm._preparer.chat(messages), params, sink)
    change(request)
    llm._engine.submit(request)
    return future


def tokens(future: Any) -> tuple[int, ...]:
    return future.result(60).outputs[0].token_ids


def once(function: Callable, error: Exception, failures: list[Exception], when: Callable[..., bool]) -> Callable:
    """`function`, except that the first call that `when` is about raises."""

    def failing(*args: Any, **kwargs: Any) -> Any:
        if not failures and when(*args, **kwargs):
            failures.append(error)
            raise error
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize("move", ["send_mm", "send_kv"])
def test_a_move_that_fails(llm: LLM, expected: dict, move: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bystander = start(llm, BYSTANDER, LONG)
    eventually(lambda: bool(llm._engine.counts().get("decoding")))
    failures: list[Exception] = []
    inside = {"send_mm": False, "send_kv": False}
    original = getattr(Instance, move)

    def sending(self: Instance, *args: Any) -> Any:
        inside[move] = True
        try:
            return original(self, *args)
        finally:
            inside[move] = False

    monkeypatch.setattr(Instance, move, sending)
    monkeypatch.setattr(
        instances, "move", once(instances.move, RuntimeError("link down"), failures, lambda *_: inside[move])
    )
    assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"], "it is done again"
    assert failures
    assert tokens(bystander) == expected["bystander"]


@pytest.mark.parametrize("step", ["encode", "prefill"])
def test_a_device_put_that_fails(llm: LLM, expected: dict, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bystander = start(llm, BYSTANDER, LONG)
    eventually(lambda: bool(llm._engine.counts().get("decoding")))
    failures: list[Exception] = []
    wanted = {"encode": "pixels", "prefill": "mm_rows"}[step]
    when = lambda value, *_: isinstance(value, dict) and wanted in value  # noqa: E731
    monkeypatch.setattr(jax, "device_put", once(jax.device_put, RuntimeError("no device"), failures, when))
    assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"], "it is done again"
    assert failures
    assert tokens(bystander) == expected["bystander"]


def test_an_instance_out_of_memory(llm: LLM, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill takes its donated pools along. Its request starts over, like any whose KV was there too, and one that
    is decoded elsewhere does not notice."""
    bystander = start(llm, BYSTANDER, LONG)
    eventually(lambda: bool(llm._engine.counts().get("decoding")))
    prefiller = llm.deployment.instances["i1"]
    programs, failures = dict(prefiller.programs), []

    def out_of_memory(leaves: Any, pools: Any, *rest: Any) -> None:
        for pool in pools:
            pool.delete()
        failures.append(1)
        prefiller.programs.update(programs)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    prefiller.programs.update({key: out_of_memory for key in programs if key[0] == "prefill"})
    assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"]
    assert failures == [1]
    assert prefiller.pools_alive
    assert tokens(bystander) == expected["bystander"]


def test_lost_pools_cost_nobody_his_answer(llm: LLM, checkpoint: Path, expected: dict) -> None:
    """On a monolith: a prompt that is being prefilled when a decode step takes the pools along is prefilled anew, and
    so is the sequence that was decoded."""
    long = ask("in the tan hat " * 8)
    with make_llm(checkpoint, "1EPD") as other:
        alone = other.chat(long, GREEDY)[0].outputs[0].token_ids
        only = other.deployment.instances["i0"]
        programs = dict(only.programs)
        decoded = start(other, BYSTANDER, LONG)
        eventually(lambda: bool(other._engine.counts().get("decoding")))

        def failing(leaves: Any, pools: Any, *rest: Any) -> None:
            if not other._engine.counts().get("prefilling"):
                return programs[failing.key](leaves, pools, *rest)
            for pool in pools:
                pool.delete()
            only.programs.update(programs)
            raise RuntimeError("injected")

        keys = [key for key in programs if key[0] == "decode"]
        failing.key = keys[0]  # type: ignore[attr-defined]
        for key in keys:
            only.programs[key] = lambda *args, key=key: (setattr(failing, "key", key), failing(*args))[1]
        prompt = start(other, long, GREEDY)
        assert tokens(decoded) == expected["bystander"]
        assert tokens(prompt) == alone
        audit(other._engine.scheduler)


@pytest.mark.parametrize("step", ["encode", "prefill"])
def test_a_request_that_always_fails(llm: LLM, expected: dict, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried three times, by itself from the second time on, and its instance is not blamed for it."""
    instance = llm.deployment.instances[{"encode": "i0", "prefill": "i1"}[step]]
    tries: list[int] = []
    original = getattr(instance, step)

    def failing(*args: Any) -> Any:
        works = args[0] if step == "prefill" else args[1]
        poisoned = step == "encode" or any(chunk.request_id == "poison" for chunk in works)
        if poisoned:
            tries.append(len(works))
            raise RuntimeError("injected")
        return original(*args)

    bystander = start(llm, BYSTANDER, LONG)
    with monkeypatch.context() as patch:
        patch.setattr(instance, step, failing)
        with pytest.raises(StepFailed, match="try again"):
            tokens(start(llm, VICTIM, GREEDY, request_id="poison"))
    assert len(tries) == 3 and (step == "encode" or tries[1:] == [1, 1])
    assert not llm._engine.outages.lost
    assert tokens(bystander) == expected["bystander"]


def test_numbers_that_are_not(llm: LLM, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder makes NaN of one picture. Its request ends; those beside it, and those that get its blocks, do not
    notice, and the picture is encoded again for the next who shows it."""
    encoder = llm.deployment.instances["i0"]
    programs = dict(encoder.programs)
    for key in [key for key in programs if key[0] == "encode"]:
        encoder.programs[key] = lambda *args, key=key: programs[key](*args) * jnp.nan
    try:
        bystander = start(llm, BYSTANDER, LONG)
        with pytest.raises(NotFinite):
            tokens(start(llm, VICTIM, GREEDY))
    finally:
        encoder.programs.update(programs)
    assert tokens(bystander) == expected["bystander"]
    others = [start(llm, some, GREEDY) for some in CONVERSATIONS.values()]
    together = [tokens(other) for other in others]
    assert together == [llm.chat(some, GREEDY)[0].outputs[0].token_ids for some in CONVERSATIONS.values()]


def test_a_tokenizer_that_fails(llm: LLM, expected: dict) -> None:
    def spoil(request: Any) -> None:
        def push(token: int, **_: Any) -> None:
            raise RuntimeError("not a token")

        request.detokenizer.push = push

    bystander = start(llm, BYSTANDER, LONG)
    with pytest.raises(AnswerFailed, match="RuntimeError"):
        tokens(start(llm, VICTIM, GREEDY, spoil))
    assert tokens(bystander) == expected["bystander"]


def test_a_reader_that_is_gone(llm: LLM, expected: dict) -> None:
    def spoil(request: Any) -> None:
        def sink(output: Any) -> None:
            raise RuntimeError("Event loop is closed")

        request.sink = sink

    bystander = start(llm, BYSTANDER, LONG)
    start(llm, VICTIM, GREEDY, spoil)
    assert tokens(bystander) == expected["bystander"]


def test_a_processor_that_crashes(llm: LLM, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    bystander = start(llm, BYSTANDER, LONG)
    with monkeypatch.context() as patch:
        patch.setattr(llm.processor, "render", lambda messages: 1 // 0)
        with pytest.raises(PreprocessingFailed, match="the server's log has more"):
            llm.chat(VICTIM, GREEDY)
    assert tokens(bystander) == expected["bystander"]


def hold_up(llm: LLM, monkeypatch: pytest.MonkeyPatch, instance: str, lane: str, times: int) -> list[Callable]:
    """The next results of a lane are not heard of; returns what would tell of each, late."""
    late: list[Callable] = []
    original = Waiter.watch

    def watch(self: Waiter, arrays: Any, fetch: bool, report: Callable) -> None:
        if len(late) < times and self.name == f"epdjax-{instance}-{lane}":
            late.append(lambda: report(arrays, None))
        else:
            original(self, arrays, fetch, report)

    monkeypatch.setattr(Waiter, "watch", watch)
    return late


@pytest.mark.parametrize(("destination", "kind"), [("i1", "MoveMM"), ("i2", "MoveKV")])
def test_a_move_that_does_not_end(
    llm: LLM, expected: dict, destination: str, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It is made again, nobody is blamed for it, and when it ends after all nothing is written."""
    monkeypatch.setattr(llm._engine.outages, "_move_s", 0.2)
    late = hold_up(llm, monkeypatch, destination, "move", 1)
    with caplog.at_level("ERROR", "epdjax.serving.engine"):
        assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"]
    assert [record.message.split(" on ")[0] for record in caplog.records] == [kind]
    assert "has not ended within 0.2 s" in str(caplog.records[0].exc_info[1])
    assert not llm._engine.outages.lost
    bystander = start(llm, BYSTANDER, LONG)
    late[0]()
    assert tokens(bystander) == expected["bystander"], "it holds blocks that were to be written"


def test_waiting_that_cannot_begin(llm: LLM, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of a result to the host cannot be started: a failure like any of the step itself."""
    failures: list[Exception] = []
    failing = once(Waiter.watch, RuntimeError("no copy"), failures, lambda self, arrays, fetch, report: fetch)
    monkeypatch.setattr(Waiter, "watch", failing)
    assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"]
    assert failures and not llm._engine.outages.lost


def test_a_link_that_is_down(checkpoint: Path, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves to one of two D instances never end, whatever its steps do: it is done without, and nobody else is."""
    with make_llm(checkpoint, "1E1P2D", move_s=0.2) as llm:
        hold_up(llm, monkeypatch, "i2", "move", 1000)
        futures = [start(llm, BYSTANDER, GREEDY) for _ in range(12)]
        together = {tokens(future) for future in futures}
        for _ in range(20):
            if llm._engine.outages.lost:
                break
            together.add(tokens(start(llm, BYSTANDER, GREEDY)))
        assert together == {expected["bystander"][:12]}
        assert set(llm._engine.outages.lost) == {"i2"}
        assert "moves to or from it do not end within 0.2 s" in llm._engine.outages.lost["i2"].why
        eventually(lambda: llm._engine.scheduler.idle)
        audit(llm._engine.scheduler)


@pytest.mark.parametrize("pool", ["kv", "slot", "mm"])
def test_books_that_do_not_balance(llm: LLM, expected: dict, pool: str, caplog: Any) -> None:
    """A bug lets blocks leak. When nothing is served any more they are found missing, and got back."""
    engine = llm._engine
    ledger = engine.scheduler.instances["i1"]

    def leak() -> None:
        engine.scheduler.queued.units += 3
        assert ledger.pools[pool].take(ledger.pools[pool].available) is not None

    with caplog.at_level("ERROR", "epdjax.serving.engine"):
        engine.call(leak)
        assert tokens(start(llm, VICTIM, GREEDY)) == expected["victim"]
    capacity = ledger.pools[pool].capacity
    assert f"i1 {pool}: 0 holds, {capacity} counted" in str(caplog.records[0].exc_info[1])
    assert len(caplog.records) == 1, "it is well from then on"
    assert engine.dead is None
