"""Profiles: what the real steps of a model took on a chip, in a JSON file that says where it comes from."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pydantic

from epdjax.planning.costs.host import HostCosts
from epdjax.serving.buckets import Buckets

FORMAT, VERSION = "epdjax-profile", 2


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
    """A move of `count` KV blocks or MM tokens, padding included, from its dispatch to having landed."""

    count: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Kind:
    """Instances that are alike, and what their steps took.

    Attributes:
        roles, tensor, encode_width: see `epdjax.serving.ledger.InstanceSpec`.
        attention: the kernel of each role.
        cores: that steps of each stage keep busy on the host, where devices share its cores.
        encode: steps, from units on the host. prefill, decode: steps, from inputs on the device.
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
class Overhead:
    """Seconds that the host adds.

    Attributes:
        loop: that the engine's thread takes for any work: to start it, and to hear of its end.
        waking: of a step before which nothing ran anywhere.
        step: that a decode step takes longer in the engine than called by itself, again and again.
    """

    loop: float = 0.0
    waking: float = 0.0
    step: float = 0.0


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
    """See the module; `preprocessing` is None where there was no checkpoint whose processor could be timed."""

    taken: Taken
    chip: ChipSeen
    model: ModelSeen
    settings: Settings
    buckets: Buckets
    kinds: tuple[Kind, ...]
    overhead: Overhead
    preprocessing: HostCosts | None = None
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


def digest(model: Any) -> str:
    """16 hexadecimal digits that stand for a model's config."""
    fields = json.dumps(dataclasses.asdict(model), sort_keys=True, default=str)
    return hashlib.sha256(f"{type(model).__name__} {fields}".encode()).hexdigest()[:16]
