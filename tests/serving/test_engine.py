"""What the engine promises of devices: who holds what, what never crosses the host, what is never compiled late."""

import dataclasses
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from epdjax import LLM, SamplingParams
from epdjax.serving.audit import audit
from epdjax.serving.compiles import compile_counter
from epdjax.serving.errors import StepFailed, TooLong
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.rows import FLOAT_FIELDS
from epdjax.serving.sampling import TOP_LOGPROBS
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def strangers(checkpoint: Path) -> list[jax.Array]:
    """What earlier tests have left on the devices; held, so that no array of ours is taken for one of them."""
    return jax.live_arrays()


@pytest.fixture(scope="module")
def llm(checkpoint: Path, strangers: list[jax.Array]):
    with make_llm(checkpoint, "2E1P1D") as llm:
        yield llm


def test_an_instance_holds_only_the_parts_its_roles_need(llm: LLM, strangers: list[jax.Array]) -> None:
    encoder = language = 0
    for instance in llm.deployment.instances.values():
        needed = {"encoder"} if instance.roles == "E" else {"language_model"}
        assert set(instance.parts) == needed
        held = sum(leaf.nbytes for _, leaves in instance.parts.values() for leaf in leaves)
        devices = set(instance.submesh.devices)
        assert all(leaf.sharding.device_set == devices for _, leaves in instance.parts.values() for leaf in leaves)
        if instance.roles == "E":
            encoder = held
        else:
            language = held
    # Beside the parameters of its role nothing of the model's size lies on a device: whatever a loader might have left
    # there would show up among all live arrays.
    own = {id(stranger) for stranger in strangers}
    own |= {id(leaf) for i in llm.deployment.instances.values() for _, ls in i.parts.values() for leaf in ls}
    with_pools = [i for i in llm.deployment.instances.values() if i.pools]
    own |= {id(array) for i in with_pools for array in jax.tree.leaves((i.pools, i.slots, i.mm_pool))}
    used = {device for i in llm.deployment.instances.values() for device in i.submesh.devices}
    strays = [a for a in jax.live_arrays() if a.sharding.device_set <= used and id(a) not in own]
    assert sum(a.nbytes for a in strays) < min(encoder, language) / 10


def test_mm_tokens_and_kv_never_visit_the_host(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard forbids implicit copies; what is fetched or put explicitly is looked at, and is small or pixels."""
    fetched: list[tuple[int, ...]] = []
    uploaded: list[tuple[tuple[int, ...], np.dtype]] = []
    device_get, device_put = jax.device_get, jax.device_put

    def spy_get(tree):
        fetched.extend(leaf.shape for leaf in jax.tree.leaves(tree))
        return device_get(tree)

    def spy_put(tree, *args, **kwargs):
        uploaded.extend((a.shape, a.dtype) for a in jax.tree.leaves(tree) if isinstance(a, np.ndarray))
        return device_put(tree, *args, **kwargs)

    monkeypatch.setattr(jax, "device_get", spy_get)
    monkeypatch.setattr(jax, "device_put", spy_put)
    previous = jax.config.jax_transfer_guard
    jax.config.update("jax_transfer_guard", "disallow")  # for every thread, the engine's and the waiters' included
    try:
        llm.chat(list(CONVERSATIONS.values()), GREEDY)
        plain, up = list(fetched), list(uploaded)
        llm.chat(list(CONVERSATIONS.values()), dataclasses.replace(GREEDY, logprobs=3, logit_bias={5: 1.0}))
    finally:
        jax.config.update("jax_transfer_guard", previous or "allow")
    assert plain and all(len(shape) == 1 for shape in plain), "only sampled tokens come back"
    assert all(len(shape) == 1 or shape[1:] == (TOP_LOGPROBS,) for shape in fetched), "and what was asked for of them"
    floats = [shape for shape, dtype in up if dtype.kind == "f"]
    assert all(shape[-1] == FLOAT_FIELDS for shape in floats), "the only floats that go up are sampling settings"
    seeds = [shape for shape, dtype in uploaded[len(up) :] if dtype.kind == "f" and shape[-1] != FLOAT_FIELDS]
    biases = llm.deployment.instances["i2"].slots.bias_values.shape[1:]
    assert set(seeds) == {biases} and len(seeds) == 2 * len(CONVERSATIONS), "and a list of biases for each instance"
    assert any(dtype == np.uint8 for _, dtype in uploaded), "pixels go up as uint8"


def test_the_kv_pool_is_updated_in_place(llm: LLM) -> None:
    def where() -> dict[str, list[int]]:
        return {
            name: [pool.unsafe_buffer_pointer() for pool in (*i.pools, i.mm_pool)]
            for name, i in llm.deployment.instances.items()
            if i.pools
        }

    before = where()
    llm.chat(list(CONVERSATIONS.values()), GREEDY)
    assert where() == before


def test_no_compile_after_ready(llm: LLM) -> None:
    """200 requests of all kinds, lengths and settings."""
    rng = np.random.default_rng(0)
    pictures = [picture(int(w), int(h), i) for i, (w, h) in enumerate(rng.integers(10, 120, (12, 2)))]
    conversations, params = [], []
    for _ in range(200):
        count = int(rng.integers(0, 3))
        chosen = [pictures[int(k)] for k in rng.integers(0, len(pictures), count)]
        conversations.append(ask("the " * int(rng.integers(1, 20)), *chosen))
        params.append(
            SamplingParams(
                temperature=float(rng.choice([0.0, 0.7, 1.5])),
                top_k=int(rng.choice([0, 5])),
                top_p=float(rng.choice([1.0, 0.8])),
                max_tokens=int(rng.integers(1, 16)),
                stop=("x",) if rng.random() < 0.2 else (),
                min_p=float(rng.choice([0.0, 0.1])),
                repetition_penalty=float(rng.choice([1.0, 1.3])),
                logit_bias={40: 3.0} if rng.random() < 0.2 else {},
                logprobs=5 if rng.random() < 0.2 else None,
                n=2 if rng.random() < 0.1 else 1,
            )
        )
    before = compile_counter().count
    outputs = llm.chat(conversations, params)
    assert len(outputs) == 200
    assert all(output.finished for output in outputs)
    assert (compile_counter().count - before).programs == 0
    assert llm._engine.scheduler.idle
    audit(llm._engine.scheduler)


def test_answers_end_at_stop_tokens_stop_strings_and_lengths(llm: LLM) -> None:
    conversation = CONVERSATIONS["many tiles"]
    full = llm.chat(conversation, GREEDY)[0].outputs[0]
    assert full.finish_reason == "length" and len(full.token_ids) == 12
    one = llm.chat(conversation, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))[0].outputs[0]
    assert one.token_ids == full.token_ids[:1] and one.finish_reason == "length"
    third = full.token_ids[2]
    first = full.token_ids.index(third)
    stopped = llm.chat(
        conversation, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=(third,))
    )[0].outputs[0]
    assert stopped.token_ids == full.token_ids[: first + 1] and stopped.finish_reason == "stop"
    middle = full.text[len(full.text) // 2]
    at_text = llm.chat(conversation, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(middle,)))[0]
    assert at_text.outputs[0].text == full.text[: full.text.index(middle)]
    assert at_text.outputs[0].finish_reason == "stop"


def test_a_request_that_never_fits_says_why_and_costs_nobody_else(llm: LLM) -> None:
    with pytest.raises(TooLong, match="context of 256"):
        llm.chat(ask("the " * 300), GREEDY)
    with pytest.raises(TooLong, match="lower max_tokens"):
        llm.chat(ask("the"), SamplingParams(max_tokens=1000))
    assert llm.chat(ask("the"), GREEDY)[0].finished


@pytest.mark.parametrize("step", ["encode", "prefill", "decode", "land_kv", "land_mm", "seed_slot"])
def test_a_step_that_fails_once_is_done_again(llm: LLM, step: str) -> None:
    """A program raises. Requests in it start over; the engine, its blocks and later answers are unharmed."""
    conversation, params = CONVERSATIONS["many tiles"], dataclasses.replace(GREEDY, logit_bias={5: 1.0})
    before = llm.chat(conversation, params)[0].outputs[0].token_ids
    forget(llm)
    instance = next(i for i in llm.deployment.instances.values() if any(k[0] == step for k in i.programs))
    programs, failures = dict(instance.programs), []

    def broken(*_: object) -> None:
        failures.append(step)
        instance.programs.update(programs)
        raise RuntimeError("injected: 0xdeadbeef")

    instance.programs.update({key: broken for key in programs if key[0] == step})
    assert llm.chat(conversation, params)[0].outputs[0].token_ids == before
    assert failures == [step]
    assert llm.chat(conversation, params)[0].outputs[0].token_ids == before
    audit(llm._engine.scheduler)


def test_a_step_that_always_fails_ends_its_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected: 0xdeadbeef")

    instance = llm.deployment.instances["i1"]
    with monkeypatch.context() as patch, pytest.raises(StepFailed) as error:
        patch.setattr(instance, "prefill", broken)
        llm.chat(CONVERSATIONS["text only"], GREEDY)
    assert "0x" not in str(error.value)
    assert llm.chat(CONVERSATIONS["text only"], GREEDY)[0].finished
    audit(llm._engine.scheduler)


def forget(llm: LLM) -> None:
    """Empty the caches of an idle engine."""
    for ledger in llm._engine.scheduler.instances.values():
        for pool in ledger.pools.values():
            pool.forget()


def count_units(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Units of every encode step from now on."""
    seen: list[int] = []
    for instance in llm.deployment.instances.values():
        encode = instance.encode

        def counted(encode_id, units, encode=encode):
            seen.append(len(units))
            return encode(encode_id, units)

        monkeypatch.setattr(instance, "encode", counted)
    return seen


def test_what_is_cached_is_neither_encoded_nor_run_again(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_units(llm, monkeypatch)
    forget(llm)
    for name in ("many tiles", "two pictures", "long text"):
        first, second = (llm.chat(CONVERSATIONS[name], GREEDY)[0] for _ in range(2))
        assert second.outputs[0].token_ids == first.outputs[0].token_ids, name
        assert second.cached_tokens >= first.prompt_tokens - 16 - (first.prompt_tokens - 1) % 16, name
    forget(llm)
    units = len(llm.processor.prompt(CONVERSATIONS["many tiles"]).media[0].units)
    encoded.clear()
    before = llm.chat(CONVERSATIONS["many tiles"], GREEDY)[0]
    assert before.cached_tokens == 0
    other_words = ask("and the dog in this picture?", picture(60, 40, 2))
    llm.chat(other_words, GREEDY)
    assert sum(encoded) == units, "another question about the same picture"
    audit(llm._engine.scheduler)


def test_many_ask_about_one_picture_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_units(llm, monkeypatch)
    forget(llm)
    conversations = [ask(f"question {i}", picture(60, 40, 77)) for i in range(50)]
    together = [o.outputs[0].token_ids for o in llm.chat(conversations, GREEDY)]
    assert sum(encoded) == len(llm.processor.prompt(conversations[0]).media[0].units)
    for conversation, tokens in zip(conversations[::7], together[::7]):
        forget(llm)
        assert llm.chat(conversation, GREEDY)[0].outputs[0].token_ids == tokens
    audit(llm._engine.scheduler)


def test_lost_pools_are_made_anew(llm: LLM) -> None:
    conversation = CONVERSATIONS["two pictures"]
    before = llm.chat(conversation, GREEDY)[0].outputs[0].token_ids
    instance = llm.deployment.instances["i2"]
    for pool in instance.pools:
        pool.delete()
    assert llm.chat(conversation, GREEDY)[0].outputs[0].token_ids == before
    assert llm.chat(conversation, GREEDY)[0].outputs[0].token_ids == before


def test_aborts_at_any_moment_free_everything(llm: LLM) -> None:
    """Requests are aborted when their first, third... token arrives, or before any work is done."""
    engine = llm._engine
    ended: dict[str, threading.Event] = {}
    prompts = [llm._preparer.chat(some) for some in CONVERSATIONS.values()]
    for number in range(24):
        request_id, over = f"abort-{number}", threading.Event()
        ended[request_id] = over

        def sink(output, request_id=request_id, over=over, after=number % 5) -> None:
            if not isinstance(output, RequestOutput) or output.finished:
                over.set()
            elif len(output.outputs[0].token_ids) == after:
                engine.abort(request_id)

        engine.submit(llm._request(request_id, prompts[number % len(prompts)], GREEDY, sink))
        if number % 5 == 0:
            engine.abort(request_id)
    assert all(over.wait(60) for over in ended.values())
    llm.chat(CONVERSATIONS["text only"], GREEDY)
    assert engine.scheduler.idle or not engine.counts()
    audit(engine.scheduler)


def test_shutdown_drains_or_refuses(checkpoint: Path) -> None:
    llm = make_llm(checkpoint, "1EPD")
    results: list[object] = []
    prompt = llm._preparer.chat(CONVERSATIONS["many tiles"])
    for number in range(4):
        llm._engine.submit(llm._request(f"r{number}", prompt, GREEDY, results.append))
    llm._engine.shutdown(drain=True, timeout_s=60)
    finished = [r for r in results if isinstance(r, RequestOutput) and r.finished]
    assert len(finished) == 4 and all(len(r.outputs[0].token_ids) == 12 for r in finished)
    late: list[object] = []
    llm._engine.submit(llm._request("late", prompt, GREEDY, late.append))
    assert len(late) == 1 and "shut down" in str(late[0])
