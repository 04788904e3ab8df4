"""KV is taken as it is needed: where it runs out, sequences make room for one another and answer the same."""

import functools
import random
import threading
import time
from pathlib import Path

import pytest

from epdjax import SamplingParams
from epdjax.serving.audit import audit
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture

PARAMS = [
    SamplingParams(temperature=0, max_tokens=60, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=20, seed=3, max_tokens=60, ignore_eos=True),
]
MORE = [ask("hat on the cat " * 4), ask("the tan", picture(40, 40, 8)), ask("in")]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> list[list[tuple[int, ...]]]:
    """Every conversation alone, with room for all."""
    with make_llm(checkpoint, "1EPD") as llm:
        conversations = [*CONVERSATIONS.values(), *MORE]
        return [[llm.chat(one, params)[0].outputs[0].token_ids for one in conversations] for params in PARAMS]


@pytest.mark.parametrize(("mesh", "kv_blocks"), [("1EPD", 20), ("1E1P2D", 18), ("1E1P,1PD", 18)])
def test_answers_survive_preemption(
    mesh: str, kv_blocks: int, checkpoint: Path, reference: list[list[tuple[int, ...]]]
) -> None:
    """Room for about two of eight sequences. The older half of the requests outlives the caches that hold their MM
    tokens, which are encoded again where a preempted one needs them."""
    with make_llm(checkpoint, mesh, kv_blocks=kv_blocks, mm_blocks=16) as llm:
        scheduler = llm._engine.scheduler
        for params, expected in zip(PARAMS, reference):
            outputs = llm.chat([*CONVERSATIONS.values(), *MORE], params)
            assert [output.outputs[0].token_ids for output in outputs] == expected
        assert scheduler.preemptions > 0
        assert scheduler.idle
        audit(scheduler)


@pytest.mark.parametrize("mesh", ["1EPD", "1E1P2D", "1E1P,1Dx2,1D"])
def test_answers_survive_preemption_at_any_moment(
    mesh: str, checkpoint: Path, reference: list[list[tuple[int, ...]]]
) -> None:
    """Every sequence is taken out again and again, whether it is in the way or not. With two D instances it moves from
    one to the other, else it is prefilled again."""
    with make_llm(checkpoint, mesh) as llm:
        engine, rng = llm._engine, random.Random(0)
        moved: list[str] = []
        for instance in llm.deployment.instances.values():
            send = instance.send_kv
            instance.send_kv = lambda parts, target, send=send, name=instance.name: (  # type: ignore[method-assign]
                moved.append(name),
                send(parts, target),
            )[1]
        over = threading.Event()

        def disturb() -> None:
            while not over.is_set():
                live = list(engine.scheduler.requests)
                if live:
                    engine._inbox.put(functools.partial(engine.scheduler.preempt, rng.choice(live)))
                time.sleep(0.004)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for params, expected in zip(PARAMS, reference):
                outputs = llm.chat([*CONVERSATIONS.values(), *MORE], params)
                assert [output.outputs[0].token_ids for output in outputs] == expected
        finally:
            over.set()
            thread.join()
        assert engine.scheduler.preemptions > 10
        assert ({"i2", "i3"} <= set(moved)) == (mesh != "1EPD")
        assert engine.scheduler.idle
        audit(engine.scheduler)
