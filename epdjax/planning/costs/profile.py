"""Profiles: what the real steps of a model took on a chip, in a JSON file that says where it comes from."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from epdjax.planning.costs.host import HostCosts
from epdjax.serving.buckets import Buckets
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill

FORMAT, VERSION = "epdjax-profile", 4
NAMES: dict[type, str] = {
    Encode: "encode",
    Prefill: "prefill",
    Decode: "decode",
    MoveMM: "mm_move",
    MoveKV: "kv_move",
}
"""What profiles call the kinds of work."""


@dataclasses.dataclass(frozen=True)
class EncodePoint:
    """An encode step of `rows` units per device, padded to `size`, in the family's measure."""

    rows: int
    size: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class PrefillPoint:
    """A prefill step of a bucket, all its rows full; `pairs` of a token and one that it sees, its own included."""

    rows: int
    tokens: int
    pages: int
    pairs: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class DecodePoint:
    """A decode step of a bucket with `running` sequences; `context` is the tokens of all of them together."""

    rows: int
    pages: int
    running: int
    context: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class MovePoint:
    """A move of `count` KV blocks or MM tokens, padding included, from being launched to having landed."""

    count: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Kind:
    """Instances that are alike, and what their steps took.

    Attributes:
        roles, tensor, encode_width: see `epdjax.serving.ledger.InstanceSpec`.
        attention: the kernel of each role.
        cores: that steps of each stage keep busy on the host, where devices share its cores.
        encode, prefill, decode: steps, from being launched to their results being there.
        kv_moves, mm_moves: moves to such an instance.
    """

    roles: str
    tensor: int
    encode_width: int
    attention: dict[str, str]
    cores: dict[str, float]
    encode: tuple[EncodePoint, ...] = ()
    prefill: tuple[PrefillPoint, ...] = ()
    decode: tuple[DecodePoint, ...] = ()
    kv_moves: tuple[MovePoint, ...] = ()
    mm_moves: tuple[MovePoint, ...] = ()


@dataclasses.dataclass(frozen=True)
class Beside:
    """How many times as long steps of a stage take while those of another, of another instance, share their cores."""

    stage: str
    other: str
    slower: float


@dataclasses.dataclass(frozen=True)
class LoopTimes:
    """Seconds that the engine's thread takes for a kind of work: to start it; to hear of its end, hand out what it
    made, and decide what is next."""

    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What the host adds, in seconds.

    Attributes:
        loop: by the kind of work, as in `NAMES`.
        token: that the thread of clients works for a token that they get.
        fresh: that a decode step takes longer still which is not behind other work of its instance.
        waking: of a step before which nothing ran anywhere.
        more: that work takes longer in the engine than called by itself, again and again, by its kind; less where
            negative.
    """

    loop: dict[str, LoopTimes] = dataclasses.field(default_factory=dict)
    waking: float = 0.0
    more: dict[str, float] = dataclasses.field(default_factory=dict)
    token: float = 0.0
    fresh: float = 0.0


@dataclasses.dataclass(frozen=True)
class Taken:
    """Where a profile comes from: when, on which machine, with what command and which versions."""

    date: str
    host: str
    command: str
    epdjax: str
    jax: str


@dataclasses.dataclass(frozen=True)
class ChipSeen:
    """The devices: JAX's platform and kind, how many there were, and the host's cores that they share (0: none)."""

    platform: str
    device_kind: str
    count: int
    cores: int


@dataclasses.dataclass(frozen=True)
class ModelSeen:
    """The model: what it was called, its family, and `digest` of its config."""

    name: str
    family: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the steps were compiled for.

    Attributes:
        mesh: mesh spec. irp: see `epdjax.mesh.places.places_of`.
        dtype: of weights and pools.
        block_size, mm_block_size: tokens per block. max_model_len: longest context.
        unit_tokens: MM tokens of a unit of each size.
        repeats: timed calls of each step, at least.
    """

    mesh: str
    irp: bool
    dtype: str
    block_size: int
    mm_block_size: int
    max_model_len: int
    unit_tokens: tuple[int, ...]
    repeats: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """See the module; `preprocessing` is None where there was no checkpoint whose processor could be timed, `beside`
    is empty where devices share no cores."""

    taken: Taken
    chip: ChipSeen
    model: ModelSeen
    settings: Settings
    buckets: Buckets
    kinds: tuple[Kind, ...]
    overhead: Overhead
    preprocessing: HostCosts | None = None
    beside: tuple[Beside, ...] = ()
    format: str = FORMAT
    version: int = VERSION

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read what `save` wrote.

        Raises:
            ValueError: there is no such file, it is no profile, is of another version, or is damaged; says what to do.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read the profile {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not a profile: it is not JSON ({error})") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"{path} is not a profile; `epdjax profile` makes one")
        if value.get("version") != VERSION:
            raise ValueError(
                f"{path} is a profile of version {value.get('version')!r}, this epdjax reads version {VERSION}; "
                "take it again with `epdjax profile`"
            )
        try:
            return pydantic.TypeAdapter(cls).validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} is a damaged profile: {where}: {first['msg']}") from error


def mean_of(profiles: Sequence[Profile]) -> Profile:
    """Profiles of one deployment as one: what was measured is the mean of theirs, the rest is the first's.

    Raises:
        ValueError: they are of different deployments, or there are none.
    """
    if not profiles:
        raise ValueError("no profiles to take the mean of")
    first = profiles[0]
    for name in ("chip", "model", "settings", "buckets"):
        if any(getattr(each, name) != getattr(first, name) for each in profiles):
            raise ValueError(f"profiles of different deployments have no mean: {name} is not the same")
    names = ("kinds", "overhead", "preprocessing", "beside")
    return dataclasses.replace(first, **{name: _mean([getattr(p, name) for p in profiles]) for name in names})


def _mean(values: Sequence[Any]) -> Any:
    """Of floats, wherever they are."""
    first = values[0]
    if isinstance(first, float):
        return statistics.fmean(values)
    if isinstance(first, tuple):
        return tuple(_mean(each) for each in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return dataclasses.replace(first, **{name: _mean([getattr(value, name) for value in values]) for name in names})
    return first


def digest(model: Any) -> str:
    """16 hexadecimal digits that stand for a model's config."""
    fields = json.dumps(dataclasses.asdict(model), sort_keys=True, default=str)
    return hashlib.sha256(f"{type(model).__name__} {fields}".encode()).hexdigest()[:16]
