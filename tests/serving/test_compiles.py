"""The counter that says nothing is compiled while serving hears what is, and the ladders of shapes hold everything."""

import logging
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.cli.serve import log_late_compiles
from epdjax.serving.buckets import Buckets, default_buckets, smallest
from epdjax.serving.compiles import compile_counter
from epdjax.serving.config import EngineConfig
from tests.serving.deployments import BUCKETS, CONVERSATIONS, make_llm

SHAPES = iter(range(1001, 2000))  # a program that nobody has compiled before


def compile_something() -> None:
    jax.jit(lambda x: x * 3.25 + 1)(np.ones(next(SHAPES), np.float32))


def test_compiles_are_counted_and_start_ups_are_not_late() -> None:
    counter = compile_counter()
    before = counter.count

    def since() -> tuple[int, int]:
        done = counter.count - before
        return done.programs, done.late

    compile_something()
    assert since() == (1, 1)
    with counter.expected():
        compile_something()
        thread = threading.Thread(target=compile_something)  # of somebody else
        thread.start()
        thread.join()
    compile_something()
    assert since() == (4, 3)
    assert compile_counter() is counter


def test_a_late_compile_is_told_with_its_shape(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with make_llm(checkpoint, "1EPD") as llm:
        deployment = llm.deployment
        assert deployment.compiles_after_ready == 0
        # JAX may still have programs that an earlier engine of this process had compiled for the same device.
        assert 0 < deployment.started.programs <= len(deployment.programs) and not deployment.started.late
        llm.chat(CONVERSATIONS["one tile"])
        assert deployment.compiles_after_ready == 0
        log_late_compiles()
        try:
            with caplog.at_level(logging.WARNING):
                compile_something()
        finally:
            jax.config.update("jax_log_compiles", False)
        assert deployment.compiles_after_ready == 1
    assert any("after ready" in r.message and "lambda" in r.message for r in caplog.records)
    assert any("with global shapes" in r.message and "float32[1" in r.message for r in caplog.records)


def test_unknown_ladders_are_refused() -> None:
    with pytest.raises(ValueError, match="buckets must be one of full, trimmed"):
        EngineConfig(model="some", buckets="few")
    assert EngineConfig(model="some", buckets=BUCKETS).buckets is BUCKETS


SIZES = st.builds(
    default_buckets,
    max_model_len=st.integers(1, 20_000),
    block_size=st.sampled_from([8, 16, 32]),
    max_chunk=st.sampled_from([32, 256, 512, 2048]),
    max_seqs=st.integers(1, 300),
    max_units=st.integers(1, 20),
    unit_sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True).map(lambda s: tuple(sorted(s))),
)


@given(SIZES)
def test_trimmed_shapes_are_fewer_and_hold_as_much(full: Buckets) -> None:
    trimmed = full.trimmed()
    for name in ("units", "unit_sizes", "prefill_pages", "decode_rows", "decode_pages", "move_blocks"):
        ladder, rungs = getattr(full, name), getattr(trimmed, name)
        assert set(rungs) <= set(ladder) and len(rungs) == -(-len(ladder) // 2)
        for size in range(1, ladder[-1] + 1, max(1, ladder[-1] // 50)):
            above = ladder.index(smallest(ladder, size))
            assert smallest(rungs, size) in ladder[above : above + 2]
    assert set(trimmed.prefill) <= set(full.prefill)
    assert trimmed.max_chunk == full.max_chunk
    for rows, tokens in full.prefill:
        assert trimmed.prefill_for(rows, tokens) is not None
