"""The finite set of shapes. Every step is compiled for these at start-up and for nothing else.

The scheduler packs work that fits a bucket; the instance pads it to the smallest one that holds it.
"""

import bisect
import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Declared shapes of one deployment, each tuple ascending.

    Attributes:
        units: encode units per device and step.
        unit_sizes: what encode units are padded to, in the family's own measure.
        prefill: (rows, tokens per row) of a prefill.
        prefill_pages: KV blocks a prefill row may see, its own included.
        decode_rows: sequences of a decode step.
        decode_pages: KV blocks a decoded sequence may see.
        move_blocks: KV blocks moved at once.
    """

    units: tuple[int, ...]
    prefill: tuple[tuple[int, int], ...]
    prefill_pages: tuple[int, ...]
    decode_rows: tuple[int, ...]
    decode_pages: tuple[int, ...]
    move_blocks: tuple[int, ...]
    unit_sizes: tuple[int, ...] = (1,)

    def unit_rows(self, size: int) -> tuple[int, ...]:
        """Units per device in an encode step over units of `size`: the larger they are the fewer, so that no step is
        larger than that over the largest unit, or over the most of the smallest."""
        budget = max(self.unit_sizes[-1], self.units[-1] * self.unit_sizes[0])
        return tuple(n for n in self.units if n * size <= budget) or self.units[:1]

    def prefill_for(self, rows: int, tokens: int) -> tuple[int, int] | None:
        """The cheapest prefill bucket of at least that size, or None."""
        fitting = [b for b in self.prefill if b[0] >= rows and b[1] >= tokens]
        return min(fitting, key=lambda b: (b[0] * b[1], b), default=None)

    def trimmed(self) -> "Buckets":
        """Every second rung of each ladder, from the largest down: the same limits with far fewer programs (kinds of
        shapes multiply), for up to about twice as much padding in each dimension."""
        rows = {rows: [tokens for r, tokens in self.prefill if r == rows] for rows, _ in self.prefill}
        prefill = ((r, tokens) for r, ladder in rows.items() for tokens in _every_second(tuple(ladder)))
        ladders = {
            field.name: _every_second(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "prefill"
        }
        return Buckets(prefill=_sorted(prefill), **ladders)

    @property
    def max_chunk(self) -> int:
        """Longest prompt chunk of a single row."""
        return max(tokens for _, tokens in self.prefill)


def _every_second(ladder: tuple[int, ...]) -> tuple[int, ...]:
    return ladder[::-1][::2][::-1]


def smallest(buckets: tuple[int, ...], size: int) -> int:
    """The smallest bucket of at least `size`.

    Raises:
        ValueError: `size` is beyond the largest; the scheduler's limits and the buckets disagree, which is a bug.
    """
    at = bisect.bisect_left(buckets, size)
    if at == len(buckets):
        raise ValueError(f"no bucket holds {size}; the largest is {buckets[-1]}")
    return buckets[at]


def powers(low: int, high: int, factor: int = 2) -> tuple[int, ...]:
    """`low`, `low * factor`, ... and `high` itself."""
    sizes = []
    while low < high:
        sizes.append(low)
        low *= factor
    return (*sizes, high)


def default_buckets(
    *,
    max_model_len: int,
    block_size: int,
    max_chunk: int,
    max_seqs: int,
    max_units: int,
    unit_sizes: tuple[int, ...] = (1,),
    prefill_rows: int = 4,
) -> Buckets:
    """Buckets that waste at most about half of any step: powers of two in tokens and units, of four elsewhere.

    Args:
        max_model_len: longest prompt and answer together, tokens.
        block_size: tokens per KV block.
        max_chunk: prompt tokens per prefill step.
        max_seqs: sequences decoded together.
        max_units: encode units per device and step.
        unit_sizes: of encode units.
        prefill_rows: prompts prefilled together, where they are short.
    """
    pages = -(-max_model_len // block_size)
    max_chunk = min(max_chunk, -(-max_model_len // block_size) * block_size)
    lengths = powers(min(64, max_chunk), max_chunk)
    shared = [n for n in lengths if n * prefill_rows <= max_chunk] if prefill_rows > 1 else []
    some_pages = powers(min(16, pages), pages, 4)
    return Buckets(
        units=powers(1, max_units),
        prefill=_sorted([(1, n) for n in lengths] + [(prefill_rows, n) for n in shared]),
        prefill_pages=some_pages,
        decode_rows=powers(1, max_seqs, 4),
        decode_pages=some_pages,
        move_blocks=powers(min(4, pages), pages, 4),
        unit_sizes=unit_sizes,
    )


def _sorted(shapes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(set(shapes)))
