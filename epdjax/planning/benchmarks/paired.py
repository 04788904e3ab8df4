"""A paired comparison: the same conversations, weights and tokens, one contestant after the other, again and again, and
what the machine could do at best."""

import dataclasses
import functools
import random
import statistics
import string
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from epdjax.models.presets import parameter_count
from epdjax.models.random_checkpoint import InternVLSize
from epdjax.planning.benchmarks.contestants import Contestant, Conversation, Epdjax

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        requests: of the offline run: of five, two text, one with a picture of one tile, two of several tiles.
        answer: fewest and most tokens of their answers.
        concurrent: how many answer at once where the pace is measured. pace_tokens: of each of those answers, and then
            twice as many.
        words: of each text, two tokens each.
        picture: width and height in tiles of the larger pictures.
        repeats: of everything, contestants in turns.
    """

    requests: int = 32
    answer: tuple[int, int] = (8, 64)
    concurrent: tuple[int, ...] = (1, 8, 32)
    pace_tokens: int = 32
    words: int = 60
    picture: tuple[int, int] = (3, 2)
    repeats: int = 3


@dataclasses.dataclass
class Measured:
    """One quantity: `values` by contestant, in the order of the repeats; what the machine allows at best; its unit."""

    what: str
    unit: str
    best: float
    values: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        measured: all quantities.
        answers, same: of the offline runs: how many were compared, and how many had the same tokens throughout.
        first_difference: the earliest token at which two answers differ, or None.
        flops_per_s, bytes_per_s: what the machine reaches in a matrix product, and reading memory.
    """

    measured: list[Measured]
    answers: int
    same: int
    first_difference: int | None
    flops_per_s: float
    bytes_per_s: float


def compare(ours: Epdjax, theirs: Contestant, size: InternVLSize, plan: Plan) -> Comparison:
    """Measure both contestants in turns, on new content each time, so that no cache helps."""
    flops, bytes_ = matmul_flops(), read_bandwidth()
    floor = _Floor.of(ours, size, flops, bytes_)
    measured: dict[str, Measured] = {}
    differences: list[int | None] = []
    for repeat in range(-1, plan.repeats):  # the first round warms up
        offline = _mixed(random.Random(f"offline {repeat}"), size, plan)
        answers = {}
        for side in (ours, theirs):
            rng = random.Random(f"alone {repeat}")
            seconds, answers[side.name] = _timed(functools.partial(side.answer, *offline))
            results = [
                ("offline", "requests/s", floor.requests_per_s(offline), len(offline[0]) / seconds),
                ("first token of one request", "ms", *_first_token(rng, side, size, plan, floor)),
                *(_pace(rng, side, size, plan, count, floor) for count in plan.concurrent),
            ]
            for what, unit, best, value in results if repeat >= 0 else ():
                entry = measured.setdefault(what, Measured(what, unit, best))
                entry.values.setdefault(side.name, []).append(value)
        differences += [_first_difference(a, b) for a, b in zip(answers[ours.name], answers[theirs.name], strict=True)]
    different = [at for at in differences if at is not None]
    same = len(differences) - len(different)
    return Comparison(list(measured.values()), len(differences), same, min(different, default=None), flops, bytes_)


def matmul_flops(side: int = 2048) -> float:
    """Floating-point operations per second of a float32 matrix product, the best of a few."""
    x = jnp.ones((side, side), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    return 2 * side**3 / _best(lambda: product(x).block_until_ready())


def read_bandwidth(mebibytes: int = 512) -> float:
    """Bytes per second of reading memory that no cache holds: the better of a copy and of a product with a vector."""
    x = np.ones((mebibytes << 8, 1024), np.float32)
    y, on_device, vector = np.empty_like(x), jnp.asarray(x), jnp.ones((1, len(x)), jnp.float32)
    product = jax.jit(lambda v, m: v @ m)
    copied = 2 * x.nbytes / _best(lambda: np.copyto(y, x))
    return max(copied, x.nbytes / _best(lambda: product(vector, on_device).block_until_ready()))


def _best(call: Callable[[], object], repeats: int = 5) -> float:
    return min(_timed(call)[0] for _ in range(1 + repeats))


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


@dataclasses.dataclass(frozen=True)
class _Floor:
    """The least time that weights and products take; attention, sampling and all else come on top of it."""

    ours: Epdjax
    encoder: int  # parameters that every patch meets
    decoder: int  # parameters that every token meets
    head: int  # parameters that sampled tokens meet besides
    patches: int  # of a tile
    flops: float
    bytes_: float

    @classmethod
    def of(cls, ours: Epdjax, size: InternVLSize, flops: float, bytes_: float) -> "_Floor":
        d = ours.llm.deployment
        counts = parameter_count(d.family, d.model)
        table = size.vocab * size.text_width
        decoder = counts["language_model"] - 2 * table
        return cls(ours, counts["encoder"], decoder, table, (size.tile // size.patch) ** 2, flops, bytes_)

    def prefill_s(self, conversation: Conversation) -> float:
        prompt = self.ours.llm.processor.prompt(conversation)
        tiles = sum(len(item.units) for item in prompt.media)
        operations = self.encoder * self.patches * tiles + self.decoder * len(prompt.token_ids) + self.head
        return 2 * operations / self.flops

    def step_s(self, rows: int) -> float:
        parameters = self.decoder + self.head
        return max(4 * parameters / self.bytes_, 2 * parameters * rows / self.flops)

    def requests_per_s(self, offline: tuple[list[Conversation], list[int]]) -> float:
        conversations, lengths = offline
        tokens = sum(length - 1 for length in lengths)
        steps = max(max(lengths) - 1, tokens / len(lengths))
        decoding = max(steps * self.step_s(1), tokens * 2 * (self.decoder + self.head) / self.flops)
        return len(conversations) / (sum(map(self.prefill_s, conversations)) + decoding)


def _first_token(
    rng: random.Random, side: Contestant, size: InternVLSize, plan: Plan, floor: _Floor
) -> tuple[float, float]:
    asked = [_ask(rng, plan.words, _noise(rng, size, plan.picture)) for _ in range(3)]
    seconds = [_timed(functools.partial(side.answer, [one], [1]))[0] for one in asked]
    return floor.prefill_s(asked[0]) * 1e3, statistics.median(seconds) * 1e3


def _pace(
    rng: random.Random, side: Contestant, size: InternVLSize, plan: Plan, count: int, floor: _Floor
) -> tuple[str, str, float, float]:
    """Milliseconds per token while all answers run: what twice as many tokens take beyond the time of the first half,
    in which others are still being prefilled; each time with new content."""
    times = []
    for tokens in (plan.pace_tokens, 2 * plan.pace_tokens):
        asked = [_ask(rng, plan.words, _noise(rng, size, (1, 1))) for _ in range(count)]
        times.append(_timed(functools.partial(side.answer, asked, [tokens] * count))[0])
    each = (times[1] - times[0]) / plan.pace_tokens
    return f"token of each of {count} answers", "ms", floor.step_s(count) * 1e3, each * 1e3


def _mixed(rng: random.Random, size: InternVLSize, plan: Plan) -> tuple[list[Conversation], list[int]]:
    kinds: list[tuple[int, int] | None] = [None, plan.picture, (1, 1), None, plan.picture]
    chosen = [kinds[i % len(kinds)] for i in range(plan.requests)]
    asked = [_ask(rng, plan.words, *([] if shape is None else [_noise(rng, size, shape)])) for shape in chosen]
    return asked, [rng.randint(*plan.answer) for _ in asked]


def _ask(rng: random.Random, words: int, *pictures: Image.Image) -> Conversation:
    said = " ".join("".join(rng.choices(string.ascii_lowercase, k=2)) for _ in range(words))
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": said}]}]


def _noise(rng: random.Random, size: InternVLSize, tiles: tuple[int, int]) -> Image.Image:
    shape = (tiles[1] * size.tile, tiles[0] * size.tile, 3)
    return Image.fromarray(np.random.default_rng(rng.getrandbits(32)).integers(0, 256, shape, np.uint8))


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
