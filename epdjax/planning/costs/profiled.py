"""Costs from a profile of the real steps.

A step takes what its bucket took: work is padded to the bucket that the engine would choose. Within a bucket it depends
on the context, on a straight line between the shortest and the longest that were timed. A bucket that was not timed
lies on straight lines between those that were; one that is larger than all of them takes more in proportion, one that
is smaller takes as much as the smallest.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from epdjax.mesh.chips import CHIPS
from epdjax.planning.costs.host import HostCosts
from epdjax.planning.costs.ladder import between, line, rung
from epdjax.planning.costs.profile import NAMES, DecodePoint, Kind, Profile, digest
from epdjax.planning.machine import Cores, Machine
from epdjax.serving.buckets import Buckets
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work

STAGES = {work: NAMES[work] for work in (Encode, Prefill, Decode)}
COPYING = 1.0  # cores that a copy keeps busy
Line = tuple[float, float]
Points = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class ProfiledCosts:
    """See the module.

    Attributes:
        profile: what was measured.
        buckets: of the deployment at hand; None: those that were measured.
    """

    profile: Profile
    buckets: Buckets | None = None
    _tables: dict[tuple[str, int, int], "_Table"] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def load(cls, path: str | Path, buckets: Buckets | None = None) -> "ProfiledCosts":
        """Costs from a file that `epdjax profile` wrote.

        Raises:
            ValueError: see `Profile.load`.
        """
        return cls(Profile.load(path), buckets)

    def check(self, model: Any, chip: str) -> None:
        """Refuse to stand for another model or chip.

        Args:
            model: the model's config.
            chip: one of `CHIPS`, or what `jax.Device.device_kind` says.

        Raises:
            ValueError: the profile is of another; says which, and what to do.
        """
        seen, again = self.profile, "take one with `epdjax profile`"
        if digest(model) != seen.model.digest:
            raise ValueError(
                f"the profile is of {seen.model.name} (family {seen.model.family}, config {seen.model.digest}), not of "
                f"this model (config {digest(model)}); {again}"
            )
        wanted = CHIPS[chip].device_kind if chip in CHIPS else chip
        if not seen.chip.device_kind.startswith(wanted):
            raise ValueError(f"the profile was taken on {seen.chip.device_kind}, not on {chip}; {again}")

    @property
    def machine(self) -> Machine:
        """What the deployment runs on, but for the preparing of requests."""
        shared, over = self.profile.chip.cores, self.profile.overhead
        cores = Cores(shared, self._demand, over.waking, self._takes) if shared else None
        loop_s = self._loop_s if over.loop else None
        return Machine(cores=cores, loop_s=loop_s, token_s=over.token, fresh_s=over.fresh)

    def _loop_s(self, work: Work) -> tuple[float, float]:
        loop = self.profile.overhead.loop[NAMES[type(work)]]
        return loop.start, loop.end

    @property
    def _takes(self) -> dict[tuple[type[Work], type[Work]], float]:
        """What steps take from others so that these are as slow as they were seen to be. Where there is room for both
        nothing was to be seen of it."""
        seen, cores = self.profile.beside, self.profile.chip.cores
        demand = {stage: cores_of for kind in self.profile.kinds for stage, cores_of in kind.cores.items()}
        work = {stage: kind for kind, stage in STAGES.items()}
        return {
            (work[pair.other], work[pair.stage]): max(0.0, cores * pair.slower - demand[pair.stage])
            for pair in seen
            if demand[pair.stage] + demand[pair.other] > cores
        }

    def _demand(self, work: Work, instance: InstanceSpec) -> float:
        return self._table(instance).demand[type(work)]

    @property
    def preprocessing(self) -> HostCosts | None:
        """Of media on the host; None where it was not measured."""
        return self.profile.preprocessing

    def __call__(self, work: Work, instance: InstanceSpec) -> float:
        """Seconds of work on an instance.

        Raises:
            ValueError: no instance that could do such work was profiled.
        """
        return self._table(instance).seconds(work)

    def _table(self, instance: InstanceSpec) -> "_Table":
        key = (instance.roles, instance.tensor, instance.encode_width)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = _Table(self.profile, self.buckets or self.profile.buckets, instance)
        return table


class _Table:
    """What work takes on instances of one kind. Lines of buckets are found once and kept."""

    def __init__(self, profile: Profile, buckets: Buckets, instance: InstanceSpec):
        self._buckets, self._instance, self._mesh = buckets, instance, profile.settings.mesh
        self._more_s = {kind: profile.overhead.more.get(name, 0.0) for kind, name in NAMES.items()}
        self._block, self._unit_tokens = profile.settings.block_size, profile.settings.unit_tokens
        kinds = _nearest_first(profile.kinds, instance)
        alike = [kind for kind in kinds if kind.tensor == instance.tensor]
        self._encode = next((kind.encode for kind in kinds if kind.encode), ())
        self._prefill = _grouped(
            (p.pages, p.rows * p.tokens, p.pairs, p.seconds) for p in next((k.prefill for k in alike if k.prefill), ())
        )
        decode = next((k.decode for k in alike if k.decode), ())
        full = [point for point in decode if point.running == point.rows]
        self._decode = _grouped((p.pages, p.rows, p.context, p.seconds) for p in full)
        self._decode_saved = _saved(full, [point for point in decode if point.running < point.rows])
        self._kv: Points = _moves(next((kind.kv_moves for kind in kinds if kind.kv_moves), ()))
        self._mm: Points = _moves(next((kind.mm_moves for kind in kinds if kind.mm_moves), ()))
        cores = {stage: next((k.cores[stage] for k in kinds if stage in k.cores), 1.0) for stage in STAGES.values()}
        self.demand = {kind: cores[stage] for kind, stage in STAGES.items()} | {MoveKV: COPYING, MoveMM: COPYING}
        self._prefill_lines: dict[tuple[int, int], Line] = {}
        self._decode_lines: dict[tuple[int, int, int], Line] = {}
        self._encode_s: dict[tuple[int, int], float] = {}
        self._kv_s: dict[int, float] = {}

    def seconds(self, work: Work) -> float:
        return max(0.0, self._alone_s(work) + self._more_s[type(work)])

    def _alone_s(self, work: Work) -> float:
        match work:
            case Decode():
                positions = [row.position for row in work.sequences]
                rows = rung(self._buckets.decode_rows, len(positions))
                pages = rung(self._buckets.decode_pages, max(positions) // self._block + 1)
                shape = (rows, pages, len(positions))
                fixed, slope = self._decode_lines.get(shape) or self._decode_line(*shape)
                return fixed + slope * (sum(positions) + len(positions))
            case Prefill():
                return self._prefill_s(work)
            case Encode():
                key = (len(work.units), work.units[0].bucket)
                seconds = self._encode_s.get(key)
                if seconds is None:
                    seconds = self._encode_s[key] = self._encode_step(*key)
                return seconds
            case MoveKV():
                blocks = sum([len(part.blocks) for part in work.parts])
                seconds = self._kv_s.get(blocks)
                if seconds is None:
                    padded = rung(self._buckets.move_blocks, blocks)
                    seconds = self._kv_s[blocks] = between(self._has(self._kv, "receive KV"), padded)
                return seconds
            case MoveMM():
                bucket = min(work.rows[0].unit.bucket, len(self._unit_tokens) - 1)
                tokens = self._unit_tokens[bucket] * len(work.rows)
                return between(self._has(self._mm, "receive MM tokens"), tokens)

    def _decode_line(self, rows: int, pages: int, running: int) -> Line:
        fixed, slope = _find(self._has(self._decode, "decode"), pages, rows)
        if rows > running and self._decode_saved:
            padding, saved = (rows - running) / (rows - 1), self._decode_saved[_nearest(self._decode_saved, pages)]
            fixed -= between([(size, between(points, padding)) for size, points in sorted(saved.items())], rows)
        self._decode_lines[rows, pages, running] = fixed, slope
        return fixed, slope

    def _prefill_s(self, work: Prefill) -> float:
        chunks = work.chunks
        longest = furthest = 0
        pairs = 0.0
        for chunk in chunks:
            length, start = chunk.length, chunk.start
            longest, furthest = max(longest, length), max(furthest, start + length)
            pairs += length * (2 * start + length + 1) / 2
        shape = self._buckets.prefill_for(len(chunks), longest) or (len(chunks), longest)
        tokens, pages = shape[0] * shape[1], rung(self._buckets.prefill_pages, -(-furthest // self._block))
        found = self._prefill_lines.get((tokens, pages))
        if found is None:
            found = self._prefill_lines[tokens, pages] = _find(self._has(self._prefill, "prefill"), pages, tokens)
        return found[0] + found[1] * pairs

    def _encode_step(self, units: int, bucket: int) -> float:
        """Of the padded step of each device; sizes that were not timed lie between those that were."""
        points, sizes = self._has(self._encode, "encode"), self._buckets.unit_sizes
        size = sizes[min(bucket, len(sizes) - 1)]
        rows = rung(self._buckets.unit_rows(size), -(-units // self._instance.encode_width))
        by_size: dict[int, list[tuple[float, float]]] = {}
        for point in points:
            by_size.setdefault(point.size, []).append((point.rows, point.seconds))
        return between([(size, between(sorted(some), rows)) for size, some in sorted(by_size.items())], size)

    def _has(self, found: Any, what: str) -> Any:
        if not found:
            i = self._instance
            raise ValueError(
                f"the profile of mesh {self._mesh} has no instance that could {what} like {i.name} (roles {i.roles}, "
                f"{i.tensor} wide); take one of a mesh that has, with `epdjax profile --mesh`"
            )
        return found


def _nearest_first(kinds: Iterable[Kind], instance: InstanceSpec) -> list[Kind]:
    """Kinds, the one that is just like an instance first, then those as wide as it is."""

    def far(kind: Kind) -> tuple[bool, bool, bool]:
        wide = kind.encode_width != instance.encode_width
        return kind.tensor != instance.tensor, wide, kind.roles != instance.roles

    return sorted(kinds, key=far)


def _grouped(points: Iterable[tuple[int, int, float, float]]) -> dict[int, dict[int, Line]]:
    """(pages, size, x, seconds) to the line over x of each size, by pages."""
    groups: dict[int, dict[int, Line]] = {}
    ordered = sorted(points)
    for (pages, size), some in itertools.groupby(ordered, key=lambda point: point[:2]):
        groups.setdefault(pages, {})[size] = line([(x, seconds) for _, _, x, seconds in some])
    return groups


def _find(groups: Mapping[int, Mapping[int, Line]], pages: int, size: int) -> Line:
    """The line of a size; see `_nearest`."""
    timed = groups[_nearest(groups, pages)]
    if size in timed:
        return timed[size]
    fixed = between([(known, timed[known][0]) for known in sorted(timed)], size)
    slopes: Sequence[tuple[int, float]] = [(known, timed[known][1]) for known in sorted(timed)]
    # What a pair takes does not grow with the step.
    slope = slopes[-1][1] if size > slopes[-1][0] else between(slopes, size)
    return fixed, slope


def _saved(full: Iterable[DecodePoint], padded: Iterable[DecodePoint]) -> dict[int, dict[int, Points]]:
    """By pages and rows of the bucket: the share of rows that are padding, of all but one, and what they save at short
    contexts, in seconds."""
    shortest: dict[tuple[int, int], float] = {}
    for point in sorted(full, key=lambda point: -point.context):
        shortest[point.pages, point.rows] = point.seconds
    found: dict[int, dict[int, Points]] = {}
    for point in sorted(padded, key=lambda point: -point.running):
        saved = max(0.0, shortest[point.pages, point.rows] - point.seconds)
        points = found.setdefault(point.pages, {}).setdefault(point.rows, ((0.0, 0.0),))
        found[point.pages][point.rows] = (*points, ((point.rows - point.running) / (point.rows - 1), saved))
    return found


def _nearest(groups: Collection[int], pages: int) -> int:
    """Of the pages that were timed those that hold `pages`, or else the most there were."""
    return min((timed for timed in groups if timed >= pages), default=max(groups))


def _moves(points: Iterable[Any]) -> Points:
    """Moves by their size, the quickest of those that are as large."""
    least: dict[int, float] = {}
    for point in points:
        least[point.count] = min(point.seconds, least.get(point.count, point.seconds))
    return tuple(sorted(least.items()))
