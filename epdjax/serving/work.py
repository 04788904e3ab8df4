"""Work: the things the scheduler starts on instances. Plain data, the same for the live engine and for a simulator."""

import dataclasses
from collections.abc import Hashable


@dataclasses.dataclass(frozen=True)
class Unit:
    """One encode unit: whose it is and where it goes.

    Attributes:
        request_id, index: the request that has its data, and its number over all the request's media.
        bucket: the number of its size among `Buckets.unit_sizes`.
        target: the P instance that waits for it.
        key: of its content.
        rank: of its request, in the order of encoding.
        suspect: a step of its request has failed.
    """

    request_id: str
    index: int
    bucket: int = 0
    target: str = ""
    key: Hashable = None
    rank: tuple[float, int] = (0.0, 0)
    suspect: bool = False


@dataclasses.dataclass(frozen=True)
class Encode:
    """Encode `units`, all of one bucket, together on an E instance; the result stays there, staged, until it has been
    moved."""

    work_id: int
    instance: str
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class UnitMove:
    """Row `row` of a staged encode result goes to MM blocks `blocks` of the destination."""

    unit: Unit
    row: int
    blocks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MoveMM:
    """Move the MM tokens that `encode_id` made from its E instance into the MM pool of a P instance."""

    work_id: int
    source: str
    instance: str
    encode_id: int
    rows: tuple[UnitMove, ...]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Prompt tokens ``start .. start + length`` of a request, in one row of a prefill.

    The chunk that ends the prompt samples the first answer token into sequence slot `slot`. `mm_blocks` are the MM
    blocks of each of the request's units; of the first `cached` prompt tokens the KV was there already.
    """

    request_id: str
    start: int
    length: int
    is_last: bool
    slot: int
    kv_blocks: tuple[int, ...]
    mm_blocks: tuple[tuple[int, ...], ...] = ()
    cached: int = 0


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Run prompt chunks of several requests together on a P instance."""

    work_id: int
    instance: str
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True)
class KVPart:
    """Blocks of one request in a move: `source_blocks` become `blocks`.

    With the last of them the newest token is written into `slot`; before, there is none.
    """

    request_id: str
    source_blocks: tuple[int, ...]
    blocks: tuple[int, ...]
    is_last: bool
    slot: int


@dataclasses.dataclass(frozen=True)
class MoveKV:
    """Move KV blocks of several requests to a D instance: from the P instance where they are prefilled, chunk by chunk,
    or from a D instance that needs the room."""

    work_id: int
    source: str
    instance: str
    parts: tuple[KVPart, ...]


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One row of a decode step: the token in `slot` is run at `position` and the next one sampled."""

    request_id: str
    slot: int
    position: int
    kv_blocks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Decode:
    """One step of decoding for every running sequence of a D instance."""

    work_id: int
    instance: str
    sequences: tuple[Sequence, ...]


Work = Encode | MoveMM | Prefill | MoveKV | Decode


def request_ids(work: Work) -> tuple[str, ...]:
    """The requests whose blocks a work touches, each once, in order.

    Encoding and moving MM tokens touch none: what they write belongs to whoever wants it, see `arrivals`.
    """
    match work:
        case Encode() | MoveMM():
            ids = []
        case Prefill(chunks=chunks):
            ids = [chunk.request_id for chunk in chunks]
        case MoveKV(parts=parts):
            ids = [part.request_id for part in parts]
        case Decode(sequences=sequences):
            ids = [sequence.request_id for sequence in sequences]
    return tuple(dict.fromkeys(ids))
