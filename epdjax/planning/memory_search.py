"""The largest that fits: encode steps, pictures of a request, sequences decoded together, found with few compiles."""

import dataclasses
from collections.abc import Callable
from math import inf
from typing import Any

from epdjax.mesh.spec import Group, MeshSpec
from epdjax.models.model_config import ModelConfig, TileConfig
from epdjax.planning.media_sizes import Media, unit_shapes
from epdjax.planning.memory import Chip, InstanceMemory, PlannedModel, StepSizes, instance_memory, largest, staging
from epdjax.serving.blocks import blocks_for
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import scheduling_for

PRECISION = 0.01
NO_LIMIT = 1 << 20  # units, pictures or sequences: more than any chip holds
CONTEXT, MEMORY = "context", "memory"


def most(
    size: Callable[[int], float], room: float, limit: int = NO_LIMIT, start: int = 8, precision: float = 0.0
) -> int:
    """The largest n up to `limit` with ``size(n) <= room``; 0 where not even 1 fits.

    What steps take is nearly a straight line in n, so each try is where a line says that `room` ends: from the
    largest that fits to the smallest that does not, or, while only one kind is known, through the nearest two of it.
    A try beside one that was made goes a stride further than the last such; after a while the rest is halved.

    Args:
        size: does not fall as n grows, but for a little; asked once for each n.
        start: first n to try.
        precision: what is returned fits; it may be less than the largest by this part of it.
    """
    fits: dict[int, float] = {}
    fails: dict[int, float] = {}
    low, high = 0, limit + 1
    guess, stride = start, 1
    while high - low > max(1, precision * low):
        n = min(max(guess, low + 1), high - 1)
        taken = size(n)
        if taken <= room:
            fits[n], low = taken, n
        else:
            fails[n], high = taken, n
        step = max(stride, int(precision * low))
        if len(fits) + len(fails) > 6 and fails:
            guess = (low + high) // 2
        elif (guess := _crossing(fits, fails, room)) <= low:
            guess, stride = low + step, 2 * stride
        elif guess >= high:
            guess, stride = high - step, 2 * stride
    return low


def _crossing(fits: dict[int, float], fails: dict[int, float], room: float) -> int:
    """Where `room` ends, by the line through what is known best."""
    known = {0: 0.0} | fits | fails
    if fits and fails:
        first, last = max(fits), min(fails)
    elif fits:
        first, last = [0, *sorted(fits)][-2:]
    else:
        first, last = sorted(fails)[:2] if len(fails) > 1 else (0, min(fails))
    if known[last] == inf:
        return (max(fits, default=0) + min(fails)) // 2
    rise = known[last] - known[first]
    if rise <= 0:
        return 16 * last
    return min(int(first + (room - known[first]) * (last - first) / rise), 16 * last)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the model sees it.

    Attributes:
        units: encode units.
        tokens: MM tokens of a unit.
        size: that units are padded to, in the family's own measure.
    """

    units: int
    tokens: int
    size: int

    @property
    def mm_tokens(self) -> int:
        return self.units * self.tokens


def picture_of(model: ModelConfig, media: Media, units: int | None = None, tokens: int | None = None) -> Picture:
    """What a picture comes to in a model.

    Args:
        units, tokens: encode units, and MM tokens of each, in place of what the model says.

    Raises:
        ValueError: the model's units are not known without a checkpoint; both have to be given.
    """
    if units is None or tokens is None:
        if units is not None and isinstance(model, TileConfig):
            return Picture(units, model.unit_tokens(1), 1)
        shapes = unit_shapes(model, media)
        patches, sizes = max(shape.size for shape in shapes), model.unit_sizes(max(shape.tokens for shape in shapes))
        size = next((size for size in sizes if size >= patches), sizes[-1])
        return Picture(units or len(shapes), tokens or max(shape.tokens for shape in shapes), size)
    sizes = model.unit_sizes(tokens)
    return Picture(units, tokens, next((size for size in sizes if model.unit_tokens(size) >= tokens), sizes[-1]))


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that instances of one kind can have, each with all else as it is; None where roles do not matter to it.

    All fit; where they are more than a hundred, up to 1 % more may fit as well.

    Attributes:
        units: encode units per device and step.
        pictures: of a request, up to the model's own context.
        pictures_bound: what allows no more of them, `CONTEXT` or `MEMORY`.
        sequences: decoded together, all of them `max_model_len` long.
        kv_share: of what weights leave of the budget, for the KV pool.
    """

    units: int | None
    pictures: int | None
    pictures_bound: str | None
    sequences: int | None
    kv_share: float | None


def limits(sizes: StepSizes, made: InstanceMemory, config: EngineConfig, picture: Picture, text_tokens: int) -> Limits:
    """Search them.

    Args:
        made: of these instances, see `instance_memory`.
        text_tokens: of a prompt and its answer, MM tokens apart.
    """
    search = _Search(sizes, made, config, picture, text_tokens)
    pictures, bound = search.pictures() if set(made.roles) & set("PD") else (None, None)
    return Limits(
        units=search.units() if "E" in made.roles else None,
        pictures=pictures,
        pictures_bound=bound,
        sequences=search.sequences() if "D" in made.roles else None,
        kv_share=made.kv_share or None,
    )


class _Search:
    """What is asked of one kind of instance, while everything else stays as it is."""

    def __init__(
        self, sizes: StepSizes, made: InstanceMemory, config: EngineConfig, picture: Picture, text_tokens: int
    ):
        self.sizes, self.made, self.picture, self.text_tokens = sizes, made, picture, text_tokens
        self.scheduling = scheduling_for(config, sizes.model.config)
        self.buckets, self.block = self.scheduling.buckets, self.scheduling.block_size
        self.pages = blocks_for(self.scheduling.max_model_len, self.block)

    def other_steps(self, stage: str) -> int:
        """The largest step of other stages: it needs room at another time, but no less of it."""
        return max((size for other, size in self.made.steps.items() if other != stage), default=0)

    def units(self) -> int:
        made, size = self.made, self.picture.size
        one_sequence = self.pages * made.kv_block if made.kv_blocks else 0
        beside = made.weights + made.mm_pool + made.slots + one_sequence

        def needed(n: int) -> float:
            step = max(self.sizes.encode(n, size), self.other_steps("encode"))
            return beside + step + staging(self.sizes, n, size)

        return most(needed, made.budget, start=8 * self.buckets.units[-1], precision=PRECISION)

    def sequences(self) -> int:
        made, length = self.made, self.pages * self.block
        beside, each = made.weights + made.mm_pool + made.staged, self.pages * made.kv_block

        def needed(n: int) -> float:
            step = max(self.sizes.decode(n, self.pages), self.other_steps("decode"))
            return beside + step + self.sizes.slots(n, length) + n * each

        start = max(1, (made.budget - beside - self.other_steps("decode")) // each)
        return most(needed, made.budget, start=start, precision=PRECISION)

    def pictures(self) -> tuple[int, str]:
        made, picture = self.made, self.picture
        limit = (self.sizes.model.config.text.max_position_embeddings - self.text_tokens) // picture.mm_tokens
        if limit < 1:
            return 0, CONTEXT
        slots = self.buckets.decode_rows[-1]

        def needed(n: int) -> float:
            pages = blocks_for(self.text_tokens + n * picture.mm_tokens, self.block)
            mm_pool = mm_pool_of(self.sizes, picture, n) if "P" in made.roles else 0
            here = dataclasses.replace(self.buckets, prefill_pages=(pages,), decode_pages=(pages,))
            steps = largest(self.sizes, made.roles.replace("E", ""), here)
            beside = made.weights + mm_pool + made.staged + self.sizes.slots(slots, pages * self.block)
            return beside + max(*steps.values(), made.steps.get("encode", 0)) + pages * made.kv_block

        found = most(needed, made.budget, limit, start=limit, precision=PRECISION)
        return found, CONTEXT if found == limit else MEMORY


def mm_pool_of(sizes: StepSizes, picture: Picture, count: int) -> int:
    """Bytes of an MM pool that holds `count` pictures, and the block that takes padding."""
    block = sizes.model.config.mm_block_size
    return sizes.mm_tokens((count * picture.units * blocks_for(picture.tokens, block) + 1) * block)


@dataclasses.dataclass(frozen=True)
class InstancePlan:
    """One kind of instance of a mesh: what it takes, and the most it can have."""

    memory: InstanceMemory
    limits: Limits

    def as_dict(self) -> dict[str, Any]:
        """All of it, in bytes, as JSON has it."""
        made = self.memory
        sums = ("working", "kv_pool", "kv_tokens", "peak", "left")
        return dataclasses.asdict(made) | {name: getattr(made, name) for name in sums} | dataclasses.asdict(self.limits)


def plan_mesh(
    model: PlannedModel, mesh: MeshSpec, chip: Chip, config: EngineConfig, picture: Picture, text_tokens: int
) -> list[InstancePlan]:
    """A plan for each kind of instance of a mesh; kinds with the same roles and tensor width are one.

    Raises:
        ValueError: instances of a kind do not fit into a device; the message names them, what is missing, what helps.
    """
    counts: dict[tuple[str, int], int] = {}
    for group in mesh.groups:
        counts[group.roles, group.tensor] = counts.get((group.roles, group.tensor), 0) + group.count
    shared: dict[int, StepSizes] = {}
    plans = []
    for (roles, tensor), count in counts.items():
        if tensor not in shared:
            shared[tensor] = StepSizes(model, chip.devices(tensor), config.block_size, config.attention)
        group = Group(count, roles, tensor)
        try:
            made = instance_memory(shared[tensor], group, config, int(chip.memory * config.memory_share))
        except ValueError as error:
            raise ValueError(f"{model.name} does not fit as {group} into {chip.name}: {error}") from None
        plans.append(InstancePlan(made, limits(shared[tensor], made, config, picture, text_tokens)))
    return plans


def check_requests(
    model: PlannedModel, config: EngineConfig, picture: Picture, pictures: int, text_tokens: int
) -> None:
    """Refuse requests that no deployment with these limits would take, whatever its memory.

    Raises:
        ValueError: says which limit, by how much, and which flag helps.
    """
    scheduling = scheduling_for(config, model.config)
    tokens, longest = pictures * picture.mm_tokens + text_tokens, scheduling.max_model_len
    if tokens > longest:
        own = model.config.text.max_position_embeddings
        helps = f"raise --max-model-len to {tokens} or plan" if tokens <= own else "plan"
        raise ValueError(
            f"{pictures} pictures and {text_tokens} tokens of text take {tokens} tokens of context, {tokens - longest} "
            f"more than the {longest} there are (the model has {own}); {helps} for fewer --pictures"
        )
    blocks = pictures * picture.units * blocks_for(picture.tokens, scheduling.mm_block_size)
    if config.mm_blocks is not None and blocks > config.mm_blocks:
        raise ValueError(f"{pictures} pictures take {blocks} MM blocks; raise --mm-blocks from {config.mm_blocks}")
