"""The compiled steps of an engine by themselves: how long each takes when it is called again and again, with nothing
else around it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from epdjax.serving.encode_speed import random_unit
from epdjax.serving.instance import Instance
from epdjax.serving.params import SamplingParams
from epdjax.serving.rows import fill_row, pack_rows, settings_of
from epdjax.serving.steps import prompt_arrays


def time_step(instance: Instance, key: tuple[str, Any], repeats: int = 5) -> float:
    """Median seconds of a step, from its call to its result, with pools of its own.

    Args:
        instance: idle, or the time is shared.
        key: of one of its programs: ``encode``, ``prefill`` or ``decode``.
        repeats: timed calls, after one that is not.

    Raises:
        ValueError: another kind of program.
    """
    call = _call(instance, key)
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def step_keys(instance: Instance) -> list[tuple[str, Any]]:
    """The programs of an instance that `time_step` takes, in order."""
    kinds = ("encode", "prefill", "decode")
    return sorted((key for key in instance.programs if key[0] in kinds), key=lambda key: (kinds.index(key[0]), key[1]))


def _call(instance: Instance, key: tuple[str, Any]) -> Callable[[], jax.Array]:
    kind, shape = key
    program = instance.programs[key]
    if kind == "encode":
        rows, size = shape
        units = [random_unit(instance.model, size, seed) for seed in range(rows)]
        inputs = {name: np.stack([unit.inputs[name] for unit in units]) for name in units[0].inputs}
        placed = jax.device_put(inputs, instance.unit_sharding)
        return lambda: program(instance.parts["encoder"][1], placed)
    if kind not in ("prefill", "decode"):
        raise ValueError(f"{kind} is not a step that computes; time encode, prefill or decode")
    rows, pages = shape[0], shape[-1]
    tokens = shape[1] if kind == "prefill" else 1
    ints, floats = pack_rows(rows, pages)
    _fill(ints, floats, tokens, pages, instance)
    arguments = [jax.device_put(array, instance.replicated) for array in (ints, floats)]
    pools, slots = instance.programs["kv_pool", None]()
    mm_pool = instance.programs["mm_pool", None]()
    if kind == "prefill":
        arrays = prompt_arrays(instance.model, rows, tokens).items()
        prompt = {name: np.zeros(dims, dtype) for name, (dims, dtype) in arrays}
        arguments = [mm_pool, jax.device_put(prompt, instance.replicated), *arguments]
    leaves = instance.parts["language_model"][1]

    def step() -> jax.Array:
        nonlocal pools, slots
        sampled, pools, slots = program(leaves, pools, slots, *arguments)
        return sampled.tokens

    return step


def _fill(ints: np.ndarray, floats: np.ndarray, tokens: int, pages: int, instance: Instance) -> None:
    """Rows that are as long as their pages allow, each with blocks of its own where there are as many."""
    start = pages * instance.block_size - tokens
    settings = settings_of(SamplingParams(temperature=0), 0, 0, start)
    for row in range(len(ints)):
        blocks = 1 + (row * pages + np.arange(pages)) % instance.spec.kv_blocks
        slot = 1 + row % instance.spec.slots
        fill_row(ints[row], floats[row], settings, start, tokens, slot, blocks.tolist())
