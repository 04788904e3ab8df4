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
    leaves = instance.parts["language_model"][1]
    pools, slots, mm_pool = instance.programs["pools", None]()
    # Weights, pools and slots come first; then the MM pool and the prompt of a prefill; the packed rows come last.
    shapes = program.args_info[0][4 if kind == "prefill" else 3 :]
    zeros = jax.tree.map(lambda info: np.zeros(info.shape, info.dtype), shapes)
    _fill(zeros[-2], shape[1] if kind == "prefill" else 1, shape[-1], instance)
    arguments = [mm_pool] * (kind == "prefill") + list(jax.device_put(zeros, instance.replicated))

    def step() -> jax.Array:
        nonlocal pools, slots
        sampled, pools, slots = program(leaves, pools, slots, *arguments)
        return sampled

    return step


def _fill(ints: np.ndarray, tokens: int, pages: int, instance: Instance) -> None:
    """Greedy rows that are as long as their pages allow, each with blocks of its own where there are as many."""
    blocks = instance.spec.kv_blocks
    for row, fields in enumerate(ints):
        fields[:2] = pages * instance.block_size - tokens, tokens
        fields[-pages:] = 1 + (row * pages + np.arange(pages)) % blocks
