import gc
from pathlib import Path

import pytest

from epdjax import LLM
from epdjax.models.random_checkpoint import write_random_internvl
from epdjax.planning.benchmarks.bare import step_keys, time_step
from epdjax.planning.benchmarks.overhead import _gc_pauses, measure_decode, measure_scheduler
from tests.planning.benchmarks.small_models import SMALL
from tests.serving.deployments import SETTINGS


@pytest.mark.slow
def test_decode_steps_are_timed_in_the_engine_and_alone(tmp_path: Path) -> None:
    write_random_internvl(tmp_path, SMALL)
    with LLM(tmp_path, "1EPD", **SETTINGS) as llm:
        cost = measure_decode(llm, batch=4, tokens=24, repeats=1)
        assert cost.batch == 4 and cost.bare_s > 0 and cost.ratio > 0.5
        assert cost.gc_s >= 0 and cost.gc_longest_s >= 0
        (instance,) = llm.deployment.instances.values()
        kinds = {key[0] for key in step_keys(instance)}
        assert kinds == {"encode", "prefill", "decode"}
        for kind in sorted(kinds):
            key = next(key for key in step_keys(instance) if key[0] == kind)
            assert 0 < time_step(instance, key, repeats=1) < 30
        assert instance.pools_alive
        with pytest.raises(ValueError, match="is not a step that computes"):
            time_step(instance, ("kv_pool", None))


@pytest.mark.parametrize("roles", [("EPD",), ("E", "P", "D")])
def test_the_scheduler_is_driven_to_the_end(roles: tuple[str, ...]) -> None:
    cost = measure_scheduler(roles, requests=20, running=8, tokens=6)
    assert cost.requests == 20 and cost.works >= 20 * 6 / 8
    assert 0 < cost.step_s < cost.request_s


def test_collections_are_seen() -> None:
    with _gc_pauses() as pauses:
        gc.collect()
    assert len(pauses) >= 1 and all(seconds > 0 for seconds in pauses)
