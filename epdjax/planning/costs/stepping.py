"""Single steps and moves of an instance, made ready to be called again and again, and timed."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from epdjax.planning.costs.profile import MovePoint
from epdjax.serving.encode_speed import random_unit
from epdjax.serving.instance import Instance
from epdjax.serving.params import SamplingParams
from epdjax.serving.rows import fill_row, pack_rows, settings_of
from epdjax.serving.steps import prompt_arrays
from epdjax.serving.work import KVPart, Unit, UnitMove

Call = Callable[[], Any]


def median_s(call: Call, repeats: int) -> float:
    """Median seconds of a call until its result is there, after one that is not timed."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def encode_call(instance: Instance, rows: int, size: int) -> Call:
    """An encode step over `rows` units of noise that are on the devices already."""
    units = [random_unit(instance.model, size, seed) for seed in range(rows)]
    inputs = {name: np.stack([unit.inputs[name] for unit in units]) for name in units[0].inputs}
    placed = jax.device_put(inputs, instance.unit_sharding)
    program, leaves = instance.programs["encode", (rows, size)], instance.parts["encoder"][1]
    return lambda: program(leaves, placed)


@dataclasses.dataclass
class Pools:
    """Pools that steps run on: an instance's own, or others like them."""

    kv: Any
    slots: Any
    mm: Any

    @classmethod
    def fresh(cls, instance: Instance) -> "Pools":
        """Zeroed ones, for a thread of their own."""
        kv, slots = instance.programs["kv_pool", None]()
        return cls(kv, slots, instance.programs["mm_pool", None]())


def language_call(
    instance: Instance, key: tuple[str, Any], start: int, tokens: int, pools: Pools | None = None
) -> Call:
    """A prefill or decode step, all its rows alike.

    Args:
        key: of the program.
        start: position of each row's first new token. tokens: new tokens of each row.
        pools: to run on; None: the instance's.
    """
    arrays = jax.device_put(_packed(instance, key, start, tokens), instance.replicated)
    return lambda: _run(instance, key, arrays, pools)


def _packed(instance: Instance, key: tuple[str, Any], start: int, tokens: int) -> tuple[Any, ...]:
    """What a step takes from the host; of a prompt, every position is text."""
    kind, shape = key
    rows, pages = shape[0], shape[-1]
    ints, floats = pack_rows(rows, pages)
    settings = settings_of(SamplingParams(temperature=0), 0, 0, start)
    for row in range(rows):
        blocks = 1 + (row * pages + np.arange(-(-(start + tokens) // instance.block_size))) % instance.spec.kv_blocks
        slot = 1 + row % instance.spec.slots
        fill_row(ints[row], floats[row], settings, start, tokens, slot, blocks.tolist())
    if kind == "decode":
        return ints, floats
    prompt = {name: np.zeros(dims, kind) for name, (dims, kind) in prompt_arrays(instance.model, *shape[:2]).items()}
    prompt["mm_rows"][:] = -1
    return prompt, ints, floats


def _run(instance: Instance, key: tuple[str, Any], arrays: tuple[Any, ...], pools: Pools | None = None) -> jax.Array:
    here = pools or Pools(instance.pools, instance.slots, instance.mm_pool)
    seen = (here.mm,) if key[0] == "prefill" else ()
    leaves = instance.parts["language_model"][1]
    sampled, here.kv, here.slots = instance.programs[key](leaves, here.kv, here.slots, *seen, *arrays)
    if pools is None:
        instance.pools, instance.slots = here.kv, here.slots
    return sampled.tokens


# ---- what the host adds -------------------------------------------------------------------------------------------


def encode_overhead(instance: Instance, key: tuple[str, Any], repeats: int) -> float:
    """Seconds that an encode step takes from units on the host, beyond those on the devices."""
    rows, size = key[1]
    units = [random_unit(instance.model, size, seed) for seed in range(rows)]
    whole = median_s(lambda: instance.encode(0, units), repeats)
    instance.staged.clear()
    return whole - median_s(encode_call(instance, rows, size), repeats)


def language_overhead(instance: Instance, key: tuple[str, Any], repeats: int) -> float:
    """Seconds that a prefill or decode step takes from packing its rows to its tokens on the host, beyond the step.

    Decode steps are given to the device one ahead, as the engine does it, so that the next one runs while the tokens of
    the last are fetched.
    """
    tokens = min(key[1][1], key[1][-1] * instance.block_size) if key[0] == "prefill" else 1

    def begin() -> jax.Array:
        return _run(instance, key, jax.device_put(_packed(instance, key, 0, tokens), instance.replicated))

    bare = median_s(language_call(instance, key, 0, tokens), repeats)
    if key[0] == "prefill":
        return median_s(lambda: np.asarray(begin()), repeats) - bare
    np.asarray(begin())
    running, seconds = begin(), []
    for _ in range(repeats):
        began = time.perf_counter()
        ahead = begin()
        np.asarray(running)
        running = ahead
        seconds.append(time.perf_counter() - began)
    np.asarray(running)
    return statistics.median(seconds) - bare


# ---- moves --------------------------------------------------------------------------------------------------------


def kv_moves(target: Instance, instances: Sequence[Instance], repeats: int) -> tuple[MovePoint, ...]:
    """Moves of each declared number of KV blocks to an instance that decodes, from one that does not; none where there
    is no such instance."""
    senders = [i for i in instances if i is not target and i.performs("P") and not i.performs("D")]
    if not (senders and target.performs("D")):
        return ()
    source, points = senders[0], []
    for count in target.buckets.move_blocks:
        here, there = (tuple(1 + n % i.spec.kv_blocks for n in range(count)) for i in (source, target))
        parts = [KVPart("profile", here, there, is_last=False, slot=0)]

        def move(parts: list[KVPart] = parts) -> Any:
            moved = source.send_kv(parts, target)
            jax.block_until_ready(moved)
            target.land_kv(moved, parts, {})
            return target.pools

        points.append(MovePoint(count, median_s(move, repeats)))
    return tuple(points)


def mm_moves(target: Instance, instances: Sequence[Instance], repeats: int) -> tuple[MovePoint, ...]:
    """Moves of what each encode step makes to an instance that prefills: from itself if it encodes, else from one that
    encodes and does not prefill."""
    if not target.performs("P"):
        return ()
    senders = [target] if target.performs("E") else [i for i in instances if i.performs("E") and not i.performs("P")]
    if not senders:
        return ()
    source, points = senders[0], []
    for rows, size in sorted(shape for kind, shape in source.programs if kind == "encode"):
        units = [random_unit(source.model, size, seed) for seed in range(rows)]
        jax.block_until_ready(source.encode(0, units))
        each = -(-units[0].tokens // target.mm_block_size)
        moves = [_unit_move(row, each, target.spec.mm_blocks) for row in range(rows)]

        def move(moves: list[UnitMove] = moves) -> Any:
            pieces = source.send_mm(0, target)
            jax.block_until_ready(pieces)
            target.land_mm(pieces, source.staged[0], moves)
            return target.mm_pool

        points.append(MovePoint(rows * units[0].tokens, median_s(move, repeats)))
        source.staged.clear()
    return tuple(points)


def _unit_move(row: int, blocks: int, most: int) -> UnitMove:
    return UnitMove(Unit("profile", row), row, tuple(1 + (row * blocks + n) % most for n in range(blocks)))
