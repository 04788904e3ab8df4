"""Single steps and moves of an instance, made ready to be called again and again, and timed."""

import dataclasses
import itertools
import random
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
OFTEN, SHORT = 4, 0.025  # how often calls are timed in a round that take so little of what the longest takes
PAUSE_S = 0.02  # after which the threads of idle devices sleep


@dataclasses.dataclass(frozen=True)
class Timed:
    """A call.

    Attributes:
        seconds: from its launch until its result is there; the median. cores: that the process kept busy meanwhile.
        launch_s: that the calling thread worked before, to launch it.
    """

    seconds: float
    cores: float
    launch_s: float


def timed(
    calls: Sequence[Call],
    repeats: int,
    *,
    runs: Sequence[int] | None = None,
    pauses_s: Sequence[float] | None = None,
    least_s: float = 0.0,
) -> list[Timed]:
    """Time calls, all of them in each round, so that a slow moment of the machine falls on few calls of each, and in
    another order in each, since a call feels what ran before it. One round before does not count; it says which calls
    are short enough to be made `OFTEN` times in each.

    Args:
        repeats, least_s: rounds, and seconds, that it goes on for at least.
        runs: of each call in a row, of which the last is timed; None: one.
        pauses_s: before each call; None: none.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    busy, launching = [0.0] * len(calls), [0.0] * len(calls)

    def call(at: int) -> tuple[float, float, float]:
        if pauses_s and pauses_s[at]:
            time.sleep(pauses_s[at])
        for _ in range(runs[at] - 1 if runs else 0):
            jax.block_until_ready(calls[at]())
        began, worked, mine = time.perf_counter(), time.process_time(), time.thread_time()
        result = calls[at]()
        launch_s = time.thread_time() - mine
        jax.block_until_ready(result)
        return time.perf_counter() - began - launch_s, time.process_time() - worked - launch_s, launch_s

    once = [call(at)[0] for at in range(len(calls))]
    order = [at for at, took_s in enumerate(once) for _ in range(OFTEN if took_s <= SHORT * max(once) else 1)]
    started = time.perf_counter()
    for number in itertools.count():
        if number >= repeats and time.perf_counter() - started >= least_s:
            break
        for at in random.Random(number).sample(order, len(order)):
            took_s, worked_s, launch_s = call(at)
            seconds[at].append(took_s)
            busy[at] += worked_s
            launching[at] += launch_s
    return [
        Timed(statistics.median(took), worked / sum(took), launched / len(took))
        for took, worked, launched in zip(seconds, busy, launching)
    ]


def beyond_launch(times: Sequence[Timed]) -> list[Timed]:
    """Calls of a kind, of different sizes, without what launching takes for any: the engine's loop, which does that,
    is timed as it works. What launching a larger one takes more stays."""
    least_s = min(each.launch_s for each in times)
    return [dataclasses.replace(each, seconds=each.seconds + each.launch_s - least_s) for each in times]


def encode_call(instance: Instance, rows: int, size: int) -> Call:
    """An encode step over `rows` units of noise, from the host."""
    units = [random_unit(instance.model, size, seed) for seed in range(rows)]

    def call() -> Any:
        made = instance.encode(0, units)
        instance.staged.clear()
        return made

    return call


def language_call(instance: Instance, key: tuple[str, Any], start: int, tokens: int, used: int | None = None) -> Call:
    """A prefill or decode step whose rows are all alike.

    Args:
        key: of the program.
        start: position of each row's first new token. tokens: new tokens of each row.
        used: rows that are not padding; None: all.
    """
    arrays = jax.device_put(_packed(instance, key, start, tokens, used), instance.replicated)
    return lambda: _run(instance, key, arrays)


def _packed(
    instance: Instance, key: tuple[str, Any], start: int, tokens: int, used: int | None = None
) -> tuple[Any, ...]:
    """What a step takes from the host; of a prompt, every position is text."""
    kind, shape = key
    rows, pages = shape[0], shape[-1]
    ints, floats = pack_rows(rows, pages)
    settings = settings_of(SamplingParams(temperature=0), 0, 0, start)
    for row in range(rows if used is None else used):
        blocks = 1 + (row * pages + np.arange(-(-(start + tokens) // instance.block_size))) % instance.spec.kv_blocks
        slot = 1 + row % instance.spec.slots
        fill_row(ints[row], floats[row], settings, start, tokens, slot, blocks.tolist())
    if kind == "decode":
        return ints, floats
    prompt = {name: np.zeros(dims, kind) for name, (dims, kind) in prompt_arrays(instance.model, *shape[:2]).items()}
    prompt["mm_rows"][:] = -1
    return prompt, ints, floats


def _run(instance: Instance, key: tuple[str, Any], arrays: tuple[Any, ...]) -> jax.Array:
    seen = (instance.mm_pool,) if key[0] == "prefill" else ()
    leaves = instance.parts["language_model"][1]
    sampled, instance.pools, instance.slots = instance.programs[key](
        leaves, instance.pools, instance.slots, *seen, *arrays
    )
    return sampled.tokens


# ---- what the host adds -------------------------------------------------------------------------------------------


def waking_s(instance: Instance, key: tuple[str, Any], repeats: int) -> float:
    """Seconds that a prefill step takes longer where nothing ran before it."""
    call = language_call(instance, key, 0, min(key[1][1], key[1][-1] * instance.block_size))
    paused, awake = timed([call, call], repeats, pauses_s=(PAUSE_S, 0.0))
    return paused.seconds - awake.seconds


def dispatch_s(instance: Instance, key: tuple[str, Any], repeats: int) -> float:
    """Seconds that the calling thread works for a prefill step, from packing its rows to its tokens on the host."""
    tokens = min(key[1][1], key[1][-1] * instance.block_size)

    def whole() -> np.ndarray:
        return np.asarray(_run(instance, key, jax.device_put(_packed(instance, key, 0, tokens), instance.replicated)))

    return timed([whole], repeats)[0].launch_s


# ---- moves --------------------------------------------------------------------------------------------------------


def kv_moves(target: Instance, instances: Sequence[Instance], repeats: int) -> tuple[MovePoint, ...]:
    """Moves of each declared number of KV blocks to an instance that decodes, from one that does not; none where there
    is no such instance."""
    senders = [i for i in instances if i is not target and i.performs("P") and not i.performs("D")]
    if not (senders and target.performs("D")):
        return ()
    source, calls = senders[0], []
    for count in target.buckets.move_blocks:
        here, there = (tuple(1 + n % i.spec.kv_blocks for n in range(count)) for i in (source, target))
        parts = [KVPart("profile", here, there, is_last=False, slot=0)]

        def move(parts: list[KVPart] = parts) -> Any:
            moved = source.send_kv(parts, target)
            jax.block_until_ready(moved)
            target.land_kv(moved, parts, {})
            return target.pools

        calls.append((count, move))
    return _points(calls, repeats)


def mm_moves(target: Instance, instances: Sequence[Instance], repeats: int) -> tuple[MovePoint, ...]:
    """Moves of what each encode step makes to an instance that prefills: from itself if it encodes, else from one that
    encodes and does not prefill."""
    if not target.performs("P"):
        return ()
    senders = [target] if target.performs("E") else [i for i in instances if i.performs("E") and not i.performs("P")]
    if not senders:
        return ()
    source, calls = senders[0], []
    shapes = sorted(shape for kind, shape in source.programs if kind == "encode")
    for number, (rows, size) in enumerate(shapes):
        units = [random_unit(source.model, size, seed) for seed in range(rows)]
        jax.block_until_ready(source.encode(number, units))
        each = -(-units[0].tokens // target.mm_block_size)
        moves = [_unit_move(row, each, target.spec.mm_blocks) for row in range(rows)]

        def move(number: int = number, moves: list[UnitMove] = moves) -> Any:
            pieces = source.send_mm(number, target)
            jax.block_until_ready(pieces)
            target.land_mm(pieces, source.staged[number], moves)
            return target.mm_pool

        calls.append((rows * units[0].tokens, move))
    points = _points(calls, repeats)
    source.staged.clear()
    return points


def _points(calls: Sequence[tuple[int, Call]], repeats: int) -> tuple[MovePoint, ...]:
    times = beyond_launch(timed([call for _, call in calls], repeats))
    return tuple(MovePoint(count, time.seconds) for (count, _), time in zip(calls, times))


def _unit_move(row: int, blocks: int, most: int) -> UnitMove:
    return UnitMove(Unit("profile", row), row, tuple(1 + (row * blocks + n) % most for n in range(blocks)))
