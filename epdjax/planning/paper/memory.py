"""Tables 2, 3 and 8 of the EPD paper and its claims about memory, beside compiles of our steps for an A100-80G.

What the paper calls DistServe is ``E+P``: encoder, language model and KV pool on one device. EPD has encoders by
themselves (``E``), without a KV pool, and prefill by itself (``P``).

Each figure is there in two ways. `ONE_STEP` is how the paper ran: all units of a batch in one encode step, all its
prompts in one prefill step. `CHUNKED` is how this engine runs by default: 8 units an encode step, 512 prompt tokens a
prefill step; then encoders need no more memory for more pictures (``ours`` is None), and prefill needs MM and KV pools.

*Free memory* is what weights leave of the part of a device that the engine uses by default (90 %; the paper does not
say whether it kept any back). The KV pool must hold the prompts as well.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from epdjax.mesh.targets import target_devices, target_memory
from epdjax.models.families.minicpmv.model import MiniCPMVConfig
from epdjax.planning.media_sizes import Media
from epdjax.planning.memory import PlannedModel, StepSizes, staging
from epdjax.planning.memory_search import CONTEXT, MEMORY, NO_LIMIT, PRECISION, Picture, mm_pool_of, most, picture_of
from epdjax.serving.blocks import blocks_for
from epdjax.serving.config import EngineConfig

CHIP = "a100-80g"
MODELS = ("MiniCPM-V-2.6", "InternVL2-8B", "InternVL2-26B")
RESOLUTIONS = ((313, 234), (787, 444), (4032, 3024))
TEXT_TOKENS = 22 + 10  # of prompt and answer
KV_SHARE = 0.8  # of free memory, in tables 2 and 3
ONLINE_KV_SHARE = 0.5  # in the paper's online runs
PREFILL_BYTES = 1 << 17  # of temporaries per token, about: where to look first
ONE_STEP, CHUNKED = "one step", "chunked"
GRAIN = 1024  # prompt tokens: longest prompts are found to so many, and all else to 1 %

Figure = float | str

# (aggregated, disaggregated) by model and resolution; "context" stands for the model's context limit.
TABLE_2: dict[str, dict[tuple[int, int], tuple[int, int]]] = {
    "MiniCPM-V-2.6": {(313, 234): (77, 490), (787, 444): (26, 165), (4032, 3024): (7, 49)},
    "InternVL2-8B": {(313, 234): (19, 19), (787, 444): (19, 19), (4032, 3024): (19, 19)},
    "InternVL2-26B": {(313, 234): (1, 10), (787, 444): (11, 45), (4032, 3024): (1, 10)},
}
# (E+P, E, P)
TABLE_3: dict[str, dict[tuple[int, int], tuple[Figure, int, int]]] = {
    "MiniCPM-V-2.6": {(313, 234): (7, 49, 86), (787, 444): (2, 16, 29), (4032, 3024): ("OOM", 4, 9)},
    "InternVL2-8B": {(313, 234): (2, 15, 2), (787, 444): (9, 67, 10), (4032, 3024): (2, 15, 2)},
    "InternVL2-26B": {(313, 234): ("OOM", 6, 1), (787, 444): (1, 22, 4), (4032, 3024): ("OOM", 6, 1)},
}
# (E+P, P) in percent, by model and number of 4032 x 3024 pictures. What the summary at hand gives as one word for
# both is under P alone.
TABLE_8: dict[str, dict[int, tuple[Figure, Figure]]] = {
    "MiniCPM-V-2.6": {5: (86, 99), 10: (74, 97), 20: (49, 95), 40: ("OOM", 92), 80: ("OOM", CONTEXT)},
    "InternVL2-8B": {5: (94, 95), 10: (89, 91), 20: (CONTEXT, CONTEXT)},
    "InternVL2-26B": {5: (67, 89), 10: (36, 80), 20: ("OOM", 63), 40: ("OOM", CONTEXT)},
}
# Percent of a whole model's weights that instances of E and of P do without.
WEIGHTS_SAVED = {"MiniCPM-V-2.6": (95.0, 5.0), "InternVL2-8B": (96.2, 3.7), "InternVL2-26B": (78.3, 21.6)}
PEAK_RATIO = 15.0  # "up to": peak memory of a monolith over that of E


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of the paper, and ours.

    Attributes:
        table: ``2``, ``3``, ``8`` or ``claim``.
        case: resolution, number of pictures, or what is claimed.
        split: roles on the device or devices: ``E+P``, ``E``, ``P``, ``EPD`` (E and P apart).
        way: `ONE_STEP` or `CHUNKED`.
        paper: None: the paper has no such figure.
        ours: None: nothing of it is bounded by memory.
        bound: what allows no more, `CONTEXT` or `MEMORY`.
        memory_alone: ours, had the model the context of the paper's figure; None where nobody asked.
    """

    table: str
    model: str
    case: str
    split: str
    way: str
    paper: Figure | None
    ours: float | None
    bound: str | None = None
    memory_alone: float | None = None


class Device:
    """An A100-80G (or another chip) and a model: what steps take, and what weights and KV pool leave."""

    def __init__(self, name: str, chip: str = CHIP):
        self.model = PlannedModel.of(name)
        self.sizes = StepSizes(self.model, target_devices(chip, 1))
        self.engine = EngineConfig("planned")
        self.budget = target_memory(chip) * self.engine.memory_share
        self.context = self.model.config.text.max_position_embeddings

    def picture(self, resolution: tuple[int, int]) -> Picture:
        return picture_of(self.model.config, Media("image", *resolution))

    def prompt(self, picture: Picture, count: int) -> int:
        """Tokens of a prompt and its answer: text, MM tokens, and the two marks around each picture (InternVL) or each
        of its units (MiniCPM-V). Pictures' numbers and new lines, some five more, are left out as in the paper."""
        marks = 2 * (picture.units if isinstance(self.model.config, MiniCPMVConfig) else 1)
        return TEXT_TOKENS + count * (picture.mm_tokens + marks)

    def most_in_context(self, picture: Picture) -> int:
        """Pictures that the model's context holds."""
        return (self.context - TEXT_TOKENS) // (self.prompt(picture, 1) - TEXT_TOKENS)

    def free(self, roles: str) -> float:
        """What the weights of roles leave."""
        return self.budget - self.sizes.weights(roles)

    def kv_tokens(self, roles: str) -> int:
        """Tokens that the KV pool of tables 2 and 3 holds."""
        return int(KV_SHARE * self.free(roles) // self.sizes.kv_block) * self.sizes.block_size

    def encode_all(self, units: int, size: int) -> float:
        """All units in one step, their inputs too."""
        return self.sizes.encode(units, size) + self.sizes.units(units, size)

    def encode_some(self, size: int) -> float:
        """A step of as many units as the engine takes, and what waits beside it."""
        units = self.engine.max_units
        return self.sizes.encode(units, size) + staging(self.sizes, units, size)

    def prefill_all(self, prompts: int, tokens: int) -> float:
        """Prompts in one step, each as a whole."""
        pages = blocks_for(tokens, self.sizes.block_size)
        return self.sizes.prefill(prompts, pages * self.sizes.block_size, pages)

    def prefill_some(self, tokens: int) -> float:
        """The engine's largest prefill steps, a long chunk or four short ones, in the model's context or, where that is
        not long enough, in one of `tokens`."""
        pages = blocks_for(max(tokens, self.context), self.sizes.block_size)
        chunk = self.engine.max_chunk
        return max(self.sizes.prefill(1, chunk, pages), self.sizes.prefill(4, chunk // 4, pages))

    @functools.cached_property
    def units_alone(self) -> int:
        """Units that an encoder by itself takes in one step."""
        return most(lambda n: self.encode_all(n, self.unit_size), self.free("E"), start=1024, precision=PRECISION)

    @functools.cached_property
    def units_beside(self) -> int:
        """Units that one step takes beside the language model, a KV pool, and the MM pool they go to."""

        def needed(n: int) -> float:
            return self.encode_all(n, self.unit_size) + self.sizes.encoded(n, self.unit_size)

        return most(needed, (1 - KV_SHARE) * self.free("EP"), start=128, precision=PRECISION)

    @property
    def unit_size(self) -> int:
        """That units of the paper's pictures are padded to: of all of them the same."""
        return self.picture(RESOLUTIONS[-1]).size

    def longest(self, roles: str, way: str, limit: int) -> int:
        """Tokens of the longest single prompt whose steps and MM tokens fit beside the KV pool, and its KV in it.

        Args:
            limit: that is looked for, tokens.
        """
        limit = min(limit, self.kv_tokens(roles))
        encode = self.encode_some(self.unit_size) if way == CHUNKED and "E" in roles else 0

        def needed(tokens: int) -> float:
            step = self.prefill_some(tokens) if way == CHUNKED else self.prefill_all(1, tokens)
            return max(step, encode) + self.sizes.mm_tokens(tokens)

        room = (1 - KV_SHARE) * self.free(roles)
        if needed(limit) <= room:
            return limit
        return GRAIN * most(lambda n: needed(n * GRAIN), room, limit // GRAIN, start=max(1, limit // GRAIN // 2))


def table2(
    models: Sequence[str] = MODELS,
    resolutions: Sequence[tuple[int, int]] = RESOLUTIONS,
    ways: Sequence[str] = (ONE_STEP, CHUNKED),
) -> Iterator[Row]:
    """Most pictures of a request, one request at a time, with a KV pool of 80 % of free memory."""
    for name in models:
        device = _device(name)
        asked = [device.prompt(device.picture(size), TABLE_2[name][size][1]) for size in resolutions]
        for way in ways:
            for roles, split in (("EP", "E+P"), ("P", "EPD")):
                units = NO_LIMIT
                if way == ONE_STEP:
                    units = device.units_beside if split == "E+P" else device.units_alone
                longest = device.longest(roles, way, max(device.context, *asked))
                for resolution in resolutions:
                    picture = device.picture(resolution)
                    each = device.prompt(picture, 1) - TEXT_TOKENS
                    by_memory = min(units // picture.units, (longest - TEXT_TOKENS) // each)
                    by_context = device.most_in_context(picture)
                    paper = TABLE_2[name][resolution][split == "EPD"]
                    bound = CONTEXT if by_context <= by_memory else MEMORY
                    found = min(by_memory, by_context)
                    yield Row("2", name, _case(resolution), split, way, paper, found, bound, by_memory)


def table3(
    models: Sequence[str] = MODELS,
    resolutions: Sequence[tuple[int, int]] = RESOLUTIONS,
    ways: Sequence[str] = (ONE_STEP, CHUNKED),
    pictures: int = 10,
) -> Iterator[Row]:
    """Largest batch of requests with 10 pictures each, with a KV pool of 80 % of free memory.

    A batch of b is, of E, all units of b requests in one step, and of P, b prompts in one step with all their MM tokens
    in the pool; `CHUNKED` the prompts whose MM tokens and KV the pools hold at once, which are decoded together later.
    Prompts beyond the model's context have bound `CONTEXT`: memory would take so many, the model none.
    """
    for name in models:
        device = _device(name)
        for way in ways:
            for resolution in resolutions:
                picture = device.picture(resolution)
                tokens, units = device.prompt(picture, pictures), pictures * picture.units
                bound = CONTEXT if tokens > device.context else MEMORY
                alone = None if way == CHUNKED else device.units_alone // units
                prefill = _prompts(device, "P", way, picture, pictures)
                both = _prompts(device, "EP", way, picture, pictures)
                if way == ONE_STEP:
                    both = min(both, device.units_beside // units)
                cells = (("E+P", both), ("E", alone), ("P", prefill))
                for (split, ours), paper in zip(cells, TABLE_3[name][resolution], strict=True):
                    yield Row("3", name, _case(resolution), split, way, paper, ours, None if ours is None else bound)


def table8(
    models: Sequence[str] = MODELS, counts: Sequence[int] | None = None, ways: Sequence[str] = (ONE_STEP, CHUNKED)
) -> Iterator[Row]:
    """Largest KV pool, percent of free memory, of the device that prefills requests of 4K pictures.

    0: what has to be beside it does not fit. Where a prompt is beyond the model's context the bound is `CONTEXT`, and
    ours is what memory would take.
    """
    for name in models:
        device = _device(name)
        picture = device.picture(RESOLUTIONS[-1])
        for way in ways:
            for count in TABLE_8[name] if counts is None else counts:
                tokens, units = device.prompt(picture, count), count * picture.units
                if way == ONE_STEP:
                    prefill, encode = device.prefill_all(1, tokens), device.encode_all(units, picture.size)
                else:
                    prefill, encode = device.prefill_some(tokens), device.encode_some(picture.size)
                kv = blocks_for(tokens, device.sizes.block_size) * device.sizes.kv_block
                mm_pool = mm_pool_of(device.sizes, picture, count)
                bound = CONTEXT if tokens > device.context else MEMORY
                papers = TABLE_8[name].get(count, (None, None))
                for split, roles, step, paper in (
                    ("E+P", "EP", max(prefill, encode), papers[0]),
                    ("P", "P", prefill, papers[1]),
                ):
                    left = device.free(roles) - step - mm_pool
                    share = 100 * left / device.free(roles) if left >= kv else 0.0
                    yield Row("8", name, f"{count} pictures", split, way, paper, share, bound)


def memory_claims(models: Sequence[str] = MODELS, pictures: int = 10) -> Iterator[Row]:
    """Weights that E and P do without, percent, and how many times E's peak a monolith's is.

    The peaks are those of a request of `pictures` 4K pictures; the monolith has the KV pool of the online runs.
    """
    for name in models:
        device = _device(name)
        sizes, picture = device.sizes, device.picture(RESOLUTIONS[-1])
        whole = sizes.weights("EPD")
        for split, paper in zip("EP", WEIGHTS_SAVED[name], strict=True):
            saved = 100 * (1 - sizes.weights(split) / whole)
            yield Row("claim", name, "weights saved, %", split, ONE_STEP, paper, saved)
        tokens, units = device.prompt(picture, pictures), pictures * picture.units
        steps = {
            ONE_STEP: (device.encode_all(units, picture.size), device.prefill_all(1, tokens)),
            CHUNKED: (device.encode_some(picture.size), device.prefill_some(tokens)),
        }
        for way, (encode, prefill) in steps.items():
            beside = whole + ONLINE_KV_SHARE * device.free("EPD") + mm_pool_of(sizes, picture, pictures)
            ratio = (beside + max(encode, prefill)) / (sizes.weights("E") + encode)
            yield Row("claim", name, f"peak memory, {pictures} pictures", "E", way, PEAK_RATIO, ratio)


def _prompts(device: Device, roles: str, way: str, picture: Picture, pictures: int) -> int:
    """Prompts of so many pictures that a device prefills at a time."""
    tokens = device.prompt(picture, pictures)
    limit = device.kv_tokens(roles) // tokens
    room = (1 - KV_SHARE) * device.free(roles)
    each = mm_pool_of(device.sizes, picture, pictures)
    if way == CHUNKED:
        step = max(device.prefill_some(tokens), device.encode_some(picture.size) if "E" in roles else 0)
        return max(0, min(limit, int((room - step) // each)))
    start = max(1, int(room // (tokens * PREFILL_BYTES + each)))
    return most(lambda n: device.prefill_all(n, tokens) + n * each, room, limit, start, PRECISION)


@functools.lru_cache(maxsize=4)  # steps are compiled once for all tables
def _device(name: str) -> Device:
    return Device(name)


def _case(resolution: tuple[int, int]) -> str:
    return f"{resolution[0]}x{resolution[1]}"


HEADER = "| table | model | case | split | way | paper | ours | bound | memory alone |\n" + "|---" * 9 + "|"


def markdown(row: Row) -> str:
    """A row as a line of a table under `HEADER`."""
    cells = [row.paper, row.ours, row.bound, row.memory_alone]
    said = ("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {row.table} | {row.model} | {row.case} | {row.split} | {row.way} | {' | '.join(said)} |"
