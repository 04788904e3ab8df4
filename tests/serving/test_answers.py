"""What a request may ask of its answers beyond a temperature, through the whole engine."""

import dataclasses
import itertools
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from epdjax import LLM, SamplingParams
from epdjax.serving.audit import audit
from epdjax.serving.errors import InvalidRequest, Overloaded, RequestError
from epdjax.serving.outputs import CompletionOutput, RequestOutput
from tests.models.dense import Dense
from tests.models.tiny import tiny_hf_config, tiny_model
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture
from tests.serving.test_engine import count_units, forget

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.2, seed=3, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Path):
    with make_llm(checkpoint, "1E1P1D", max_requests=8) as llm:
        yield llm


def answer(llm: LLM, params: SamplingParams, name: str = "many tiles") -> CompletionOutput:
    return llm.chat(CONVERSATIONS[name], params)[0].outputs[0]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", ["two pictures", "long text"])
def test_logprobs_are_those_of_a_dense_forward_pass(llm: LLM, name: str, params: SamplingParams) -> None:
    """Every token of an answer, the first (from prefill) included, in a batch with others that want none or fewer."""
    wanted = dataclasses.replace(params, logprobs=20, repetition_penalty=1.3, logit_bias={50: 3.0})
    others = [GREEDY, dataclasses.replace(SEEDED, logprobs=0)]
    first, *_, few = llm.chat([CONVERSATIONS[name], CONVERSATIONS["text only"], ask("hi")], [wanted, *others])
    out = first.outputs[0]
    model = tiny_model(tiny_hf_config(tied=False, num_layers=3))
    prompt = llm.processor.prompt(CONVERSATIONS[name])
    start, count = len(prompt.token_ids), len(out.token_ids)
    dense = Dense(model, prompt, count)
    embedded = model.language_model.embed(np.array(out.token_ids))
    logits = jax.jit(dense.logits)(dense.x_btd.at[0, start : start + count].set(embedded))
    expected = np.asarray(jax.nn.log_softmax(logits[0, start - 1 : start - 1 + count]))
    assert out.logprobs is not None and [entry.token_id for entry in out.logprobs] == list(out.token_ids)
    for entry, row in zip(out.logprobs, expected):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=2e-3)
        np.testing.assert_allclose([top.logprob for top in entry.top], np.sort(row)[::-1][:20], atol=2e-3)
        np.testing.assert_allclose([row[top.token_id] for top in entry.top], np.sort(row)[::-1][:20], atol=2e-3)
    assert few.outputs[0].logprobs is not None and all(entry.top == () for entry in few.outputs[0].logprobs)


def test_asking_for_logprobs_changes_no_token(llm: LLM) -> None:
    for params in (GREEDY, SEEDED):
        plain, shown = answer(llm, params), answer(llm, dataclasses.replace(params, logprobs=1))
        assert plain.token_ids == shown.token_ids and plain.logprobs is None


def test_the_bytes_of_logprobs_make_the_text(llm: LLM) -> None:
    """Answers of a random model are full of halves of characters."""
    params = dataclasses.replace(SEEDED, temperature=2.0, max_tokens=100, logprobs=2)
    specials = (
        llm.processor.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    )  # shown in log-probabilities, left out of text
    for seed in range(3):
        out = answer(llm, dataclasses.replace(params, seed=seed), "text only")
        assert out.logprobs is not None
        made = b"".join(entry.data for entry in out.logprobs if entry.token_id not in specials)
        assert made.decode("utf-8", "replace").startswith(out.text.rstrip("\ufffd"))
        assert all(entry.text == entry.data.decode("utf-8", "replace") for entry in out.logprobs)


def test_penalties_and_bias_count_all_that_came_before(llm: LLM) -> None:
    """An answer that may not repeat anything does not, though the host is a step behind the device."""
    free = answer(llm, dataclasses.replace(GREEDY, max_tokens=40))
    assert len(set(free.token_ids)) < 40
    never_again = answer(llm, dataclasses.replace(GREEDY, max_tokens=40, presence_penalty=2, logit_bias={}))
    assert never_again.token_ids != free.token_ids
    unique = answer(llm, dataclasses.replace(GREEDY, max_tokens=40, repetition_penalty=100))
    prompt = set(llm.processor.prompt(CONVERSATIONS["many tiles"]).token_ids.tolist())
    assert len(set(unique.token_ids)) == 40 and not prompt & set(unique.token_ids)
    forced = answer(llm, dataclasses.replace(SEEDED, logit_bias={77: 100}))
    assert set(forced.token_ids) == {77}
    forbidden = dict.fromkeys(free.token_ids, -100.0)
    assert not set(answer(llm, dataclasses.replace(GREEDY, logit_bias=forbidden)).token_ids) & set(free.token_ids)


def test_min_tokens_put_off_every_kind_of_end(llm: LLM) -> None:
    eos = next(iter(llm.processor.eos_token_ids))
    eager = SamplingParams(temperature=0, max_tokens=12, logit_bias={eos: 100})
    assert answer(llm, eager).token_ids == (eos,)
    for least in (1, 5):
        out = answer(llm, dataclasses.replace(eager, min_tokens=least))
        assert len(out.token_ids) == least + 1 and out.token_ids.index(eos) == least and out.finish_reason == "stop"
    assert answer(llm, dataclasses.replace(eager, min_tokens=12)).finish_reason == "length"
    at_once = dataclasses.replace(eager, logit_bias={60: 100}, stop_token_ids=(60,), ignore_eos=True)
    assert answer(llm, at_once).token_ids == (60,)
    out = answer(llm, dataclasses.replace(at_once, min_tokens=3))
    assert out.token_ids[3:] == (60,) and 60 not in out.token_ids[:3]
    text = dataclasses.replace(
        GREEDY, logit_bias={65: 100}, stop=(llm.processor.tokenizer.backend_tokenizer.decode([65]),)
    )
    assert len(answer(llm, text).token_ids) == 1 and answer(llm, text).text == ""
    out = answer(llm, dataclasses.replace(text, min_tokens=4))
    assert len(out.token_ids) == 5 and out.text == text.stop[0] * 4


def test_answers_differ_and_are_those_of_single_requests(llm: LLM) -> None:
    """The first of several is what the same seed gives alone; any of them is the same in other company."""
    params = dataclasses.replace(SEEDED, n=4, logprobs=1, repetition_penalty=1.2)
    several = llm.chat(CONVERSATIONS["many tiles"], params)[0]
    assert [out.index for out in several.outputs] == [0, 1, 2, 3]
    answers = [out.token_ids for out in several.outputs]
    assert len(set(answers)) == 4 and all(len(tokens) == 12 for tokens in answers)
    assert answer(llm, dataclasses.replace(params, n=1)).token_ids == answers[0]
    again = llm.chat([*CONVERSATIONS.values()], [params] * len(CONVERSATIONS))[2]
    assert [out.token_ids for out in again.outputs] == answers
    more = llm.chat(CONVERSATIONS["many tiles"], dataclasses.replace(params, n=6))[0]
    assert [out.token_ids for out in more.outputs[:4]] == answers
    alike = llm.chat(CONVERSATIONS["many tiles"], dataclasses.replace(GREEDY, n=3))[0]
    assert len({out.token_ids for out in alike.outputs}) == 1


def test_several_answers_prepare_their_prompt_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, prefilled = count_units(llm, monkeypatch), []
    prefill = llm.deployment.instances["i1"].prefill

    def counted(chunks, live):
        prefilled.extend(chunk.length for chunk in chunks)
        return prefill(chunks, live)

    monkeypatch.setattr(llm.deployment.instances["i1"], "prefill", counted)
    forget(llm)
    conversation = ask("how many of them are there in it?", picture(60, 40, 5))
    out = llm.chat(conversation, dataclasses.replace(SEEDED, n=5))[0]
    assert len(out.outputs) == 5 and out.cached_tokens == 0
    assert sum(encoded) == len(llm.processor.prompt(conversation).media[0].units)
    assert sum(prefilled) <= out.prompt_tokens + 4 * 16  # of the others what does not fill a block
    audit(llm._engine.scheduler)


def test_snapshots_of_several_answers_only_grow(llm: LLM) -> None:
    snapshots: list[RequestOutput] = []
    over = threading.Event()

    def sink(output) -> None:
        assert isinstance(output, RequestOutput)
        snapshots.append(output)
        if output.finished:
            over.set()

    params = dataclasses.replace(SEEDED, n=3, temperature=2.0, logprobs=0, max_tokens=30)
    llm._engine.submit(llm._request("several", llm._preparer.chat(CONVERSATIONS["two pictures"]), params, sink))
    assert over.wait(60)
    assert all(output.request_id == "several" and len(output.outputs) == 3 for output in snapshots)
    for earlier, later in itertools.pairwise(snapshots):
        for old, new in zip(earlier.outputs, later.outputs):
            assert new.text.startswith(old.text) and new.token_ids[: len(old.token_ids)] == old.token_ids
            assert old.logprobs is not None and new.logprobs is not None
            assert new.logprobs[: len(old.logprobs)] == old.logprobs and len(new.logprobs) == len(new.token_ids)
    assert not any(output.finished for output in snapshots[:-1])


def test_answers_end_for_themselves_and_leave_nothing(llm: LLM) -> None:
    free = llm.chat(CONVERSATIONS["one tile"], dataclasses.replace(SEEDED, n=3))[0]
    stop = free.outputs[1].token_ids[2]
    out = llm.chat(CONVERSATIONS["one tile"], dataclasses.replace(SEEDED, n=3, stop_token_ids=(stop,)))[0]
    assert out.outputs[1].finish_reason == "stop" and len(out.outputs[1].token_ids) <= 3
    for got, whole in zip(out.outputs, free.outputs):
        assert whole.token_ids[: len(got.token_ids)] == got.token_ids
    one = llm.chat(CONVERSATIONS["one tile"], dataclasses.replace(SEEDED, n=3, max_tokens=1))[0]
    assert [out.token_ids for out in one.outputs] == [out.token_ids[:1] for out in free.outputs]
    assert llm._engine.scheduler.idle
    audit(llm._engine.scheduler)


@pytest.mark.parametrize("after", [0, 1, 20])
@pytest.mark.parametrize("which", [0, 1])
def test_aborting_one_answer_ends_all(llm: LLM, after: int, which: int) -> None:
    engine, over, last = llm._engine, threading.Event(), []

    def sink(output) -> None:
        if isinstance(output, RequestError) or output.finished:
            last.append(output)
            over.set()
        elif sum(len(out.token_ids) for out in output.outputs) >= after:
            engine.abort(ids[which])

    params = dataclasses.replace(SEEDED, n=3, max_tokens=60)
    request = llm._request(f"abort {after} {which}", llm._preparer.chat(CONVERSATIONS["one tile"]), params, sink)
    ids = [some.spec.request_id for some in (request, *request.followers)]
    engine.submit(request)
    if after == 0:
        engine.abort(ids[0])
    assert over.wait(60)
    assert {out.finish_reason for out in last[0].outputs} == {"abort"}
    llm.chat(CONVERSATIONS["text only"], GREEDY)
    assert len(last) == 1 and engine.scheduler.idle
    audit(engine.scheduler)


def test_several_answers_count_as_several_requests(llm: LLM) -> None:
    """Eight are taken at a time. Whoever finds no room for all of its answers is refused at once."""
    results: dict[str, list[RequestOutput | RequestError]] = {name: [] for name in "abc"}
    over = threading.Semaphore(0)
    prompt = llm._preparer.chat(CONVERSATIONS["text only"])
    for name in "abc":

        def sink(output, name=name) -> None:
            results[name].append(output)
            if isinstance(output, RequestError) or output.finished:
                over.release()

        llm._engine.submit(llm._request(name, prompt, dataclasses.replace(SEEDED, n=4, max_tokens=80), sink))
    assert all(over.acquire(timeout=60) for _ in "abc")
    assert [isinstance(some[-1], Overloaded) for some in results.values()] == [False, False, True]
    assert len(results["c"]) == 1
    with pytest.raises(InvalidRequest, match="takes 8 requests at a time") as error:
        llm.chat(CONVERSATIONS["text only"], dataclasses.replace(SEEDED, n=9))
    assert error.value.param == "n"
    assert len(llm.chat(CONVERSATIONS["text only"], dataclasses.replace(SEEDED, n=8))[0].outputs) == 8


def test_draining_finishes_all_answers(checkpoint: Path) -> None:
    llm = make_llm(checkpoint, "1EPD")
    results: list[RequestOutput | RequestError] = []
    request = llm._request(
        "r", llm._preparer.chat(CONVERSATIONS["many tiles"]), dataclasses.replace(SEEDED, n=3), results.append
    )
    llm._engine.submit(request)
    llm._engine.shutdown(drain=True, timeout_s=60)
    assert isinstance(results[-1], RequestOutput) and results[-1].finished
    assert [len(out.token_ids) for out in results[-1].outputs] == [12, 12, 12]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (SamplingParams(logit_bias={304: 1.0}), "logit_bias"),
        (SamplingParams(min_tokens=250), "min_tokens"),
    ],
)
def test_what_this_model_cannot_do_is_refused(llm: LLM, params: SamplingParams, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        answer(llm, params)
    assert error.value.param == param


def test_the_longest_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "config", dataclasses.replace(llm.config, max_output_tokens=5))
    for asked in (None, 5, 3):
        out = answer(llm, dataclasses.replace(GREEDY, max_tokens=asked), "text only")
        assert len(out.token_ids) == (asked or 5)
    with pytest.raises(InvalidRequest, match="max_tokens is 6 and answers here have 5 tokens at most") as error:
        answer(llm, dataclasses.replace(GREEDY, max_tokens=6), "text only")
    assert error.value.param == "max_tokens"
