import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.mesh.devices import divide, resolve_mesh
from epdjax.models.registry import config_of
from epdjax.serving.deployment import check_tensor_widths
from epdjax.serving.encode_speed import random_unit
from epdjax.serving.memory import block_bytes, fit, largest_units, staged_bytes, step_bytes
from tests.serving.deployments import make_llm


@given(st.integers(0, 10**12), st.integers(0, 10**10), st.integers(1, 10**8), st.integers(1, 5000))
def test_what_fits_is_used_and_no_more(budget: int, temporaries: int, block: int, least: int) -> None:
    try:
        blocks = fit(budget, temporaries, block, least=least, most=10**6)
    except ValueError as error:
        assert "GiB short" in str(error) and "--max-model-len" in str(error)
        assert temporaries + least * block > budget
    else:
        assert least <= blocks <= 10**6
        assert temporaries + blocks * block <= budget
        assert blocks == 10**6 or temporaries + (blocks + 1) * block > budget


@given(st.integers(0, 10**12), st.integers(1, 10**8), st.integers(1, 10**6))
def test_what_is_asked_for_must_fit(budget: int, block: int, wanted: int) -> None:
    try:
        assert fit(budget, 0, block, least=1, most=1, wanted=wanted) == wanted
    except ValueError as error:
        assert f"--kv-blocks {wanted}" in str(error) and f"room for {budget // block}" in str(error)
        assert wanted * block > budget
    else:
        assert wanted * block <= budget


def test_bytes_are_those_of_the_real_arrays(checkpoint) -> None:
    with make_llm(checkpoint, "1E,1Px2,1D") as llm:
        for name in ("i1", "i2"):
            instance = llm.deployment.instances[name]
            per_device = sum(pool.addressable_shards[0].data.nbytes for pool in instance.pools)
            assert block_bytes(instance) * (instance.spec.kv_blocks + 1) == per_device
            programs = dict(instance.programs)
            assert step_bytes(instance) > instance.mm_pool.nbytes * instance.performs("P")
            instance.programs.update(programs)


def test_an_encoder_stages_results_and_inputs(checkpoint) -> None:
    with make_llm(checkpoint, "1EPD") as llm:
        instance = llm.deployment.instances["i0"]
        units, size = largest_units(instance.buckets)[0]
        inputs = sum(array.nbytes for array in random_unit(instance.model, size, 0).inputs.values())
        result = instance.encode(0, [random_unit(instance.model, size, seed) for seed in range(units)])
        staged = 3 * sum(array.nbytes for array in jax.tree.leaves(result)) + 2 * units * inputs
        assert staged_bytes(instance.model, instance.dtype, units, size, results=4) == staged
        instance.staged.clear()


def test_tensor_widths_that_split_heads_unevenly_are_refused(checkpoint) -> None:
    spec, devices = resolve_mesh("1E1P,1Dx4")
    with pytest.raises(ValueError, match=r"instance i2 is 4 devices wide.* 2 KV heads; tensor widths that work: 1, 2"):
        check_tensor_widths(divide(spec, devices), config_of(checkpoint))
