"""What the scheduler knows of one instance: its roles and sizes, its pools, its queues and what runs on it."""

import collections
import dataclasses

from epdjax.serving.blocks import BlockPool, blocks_for
from epdjax.serving.buckets import Buckets
from epdjax.serving.request import Request, RequestSpec
from epdjax.serving.work import Encode, Unit, Work

IN_FLIGHT = 2  # works given to a device ahead of time, so that it never waits for Python


@dataclasses.dataclass(frozen=True)
class InstanceSpec:
    """An instance as the scheduler sees it.

    Attributes:
        name: unique in the deployment.
        roles: some of ``"EPD"``.
        kv_blocks, mm_blocks: capacity of its pools.
        slots: sequences it can hold between their first and last token.
        encode_width: devices that its encode units are spread over.
        staging: encode results that may wait on it to be moved.
    """

    name: str
    roles: str
    kv_blocks: int = 0
    mm_blocks: int = 0
    slots: int = 0
    encode_width: int = 0
    staging: int = 4


class Ledger:
    """Pools and queues of one instance. Only the scheduler changes it."""

    def __init__(self, spec: InstanceSpec, buckets: Buckets, block_size: int, mm_block_size: int):
        self.spec = spec
        self.name = spec.name
        self.buckets = buckets
        self.block_size = block_size
        self.mm_block_size = mm_block_size
        self.pools = {
            "kv": BlockPool(spec.kv_blocks),
            "mm": BlockPool(spec.mm_blocks),
            "slot": BlockPool(spec.slots),
            "staging": BlockPool(spec.staging if "E" in spec.roles else 0),
        }
        self.encode_queue: collections.deque[Unit] = collections.deque()
        self._queued = [0] * len(buckets.unit_sizes)  # units in the encode queue, by bucket
        self.prefill_queue: list[Request] = []
        self.running: dict[str, Request] = {}  # sequences being decoded, in the order they came
        self.in_flight: dict[int, Work] = {}
        self.prompt_tokens = 0  # assigned to this instance and not prefilled yet
        self.sequences = 0  # assigned to this instance for decoding
        self._turn = 0

    def performs(self, role: str) -> bool:
        return role in self.spec.roles

    def next_roles(self) -> str:
        """Its roles, beginning with the one after the role that ran last: each stage of a multi-role instance gets
        its turn, so that none starves."""
        roles = self.spec.roles
        return roles[self._turn :] + roles[: self._turn]

    def took_turn(self, role: str) -> None:
        self._turn = (self.spec.roles.index(role) + 1) % len(self.spec.roles)

    def mm_need(self, spec: RequestSpec) -> int:
        """MM blocks for all units of a request."""
        return sum(blocks_for(tokens, self.mm_block_size) for tokens in spec.unit_tokens)

    def kv_need(self, spec: RequestSpec, *, decoded_here: bool) -> int:
        """KV blocks a request may come to need here.

        A sequence that is decoded here reserves room for its longest answer, so that it can always finish.
        """
        return blocks_for(spec.total_tokens if decoded_here else spec.prompt_tokens, self.block_size)

    def could_prefill(self, spec: RequestSpec) -> bool:
        """Whether the pools, were they empty, would hold the prompt."""
        need = self.kv_need(spec, decoded_here=self.performs("D"))
        return need <= self.pools["kv"].capacity and self.mm_need(spec) <= self.pools["mm"].capacity

    def could_decode(self, spec: RequestSpec) -> bool:
        """Whether the KV pool, were it empty, would hold prompt and answer."""
        return self.kv_need(spec, decoded_here=True) <= self.pools["kv"].capacity

    def has_turn(self, request: Request) -> bool:
        """Whether `request`, prefilled elsewhere, may start decoding here now: there is room, and no older prompt of
        this instance's own waits for it."""
        if not self.room_for(self.kv_need(request.spec, decoded_here=True)):
            return False
        return all(request.order < r.order for r in self.prefill_queue if not r.prefilled)

    def max_units(self, bucket: int) -> int:
        """Encode units of a bucket in one step, all devices together."""
        return max(1, self.spec.encode_width * self.buckets.unit_rows(self.buckets.unit_sizes[bucket])[-1])

    @property
    def encode_load(self) -> float:
        """Encode steps queued and running."""
        load = sum(count / self.max_units(bucket) for bucket, count in enumerate(self._queued) if count)
        encodes = (work for work in self.in_flight.values() if isinstance(work, Encode))
        return load + sum(len(work.units) / self.max_units(work.units[0].bucket) for work in encodes)

    def queue_unit(self, unit: Unit) -> None:
        """Put a unit at the end of the encode queue."""
        self.encode_queue.append(unit)
        self._queued[unit.bucket] += 1

    def next_units(self) -> tuple[Unit, ...]:
        """Take the units of the next encode step from the queue: the first, and those of its bucket behind it."""
        bucket = self.encode_queue[0].bucket
        taken: list[Unit] = []
        kept: list[Unit] = []
        while self.encode_queue and len(taken) < self.max_units(bucket):
            unit = self.encode_queue.popleft()
            (taken if unit.bucket == bucket else kept).append(unit)
        self.encode_queue.extendleft(reversed(kept))
        self._queued[bucket] -= len(taken)
        return tuple(taken)

    def drop_units(self, request_id: str) -> int:
        """Take a request's units out of the encode queue; returns how many there were."""
        before = len(self.encode_queue)
        kept = []
        for unit in self.encode_queue:
            if unit.request_id == request_id:
                self._queued[unit.bucket] -= 1
            else:
                kept.append(unit)
        self.encode_queue = collections.deque(kept)
        return before - len(kept)

    def take(self, pool: str, count: int, request: Request) -> tuple[int, ...] | None:
        """Blocks of `pool` for `request`, entered among its holdings; None where there is no room."""
        blocks = self.pools[pool].take(count)
        if blocks is not None:
            request.holdings[self.name, pool] = request.holdings.get((self.name, pool), ()) + blocks
        return blocks

    def give_back(self, pool: str, request: Request) -> None:
        """Return what `request` holds of `pool`; nothing happens where it holds nothing."""
        self.pools[pool].give_back(request.holdings.pop((self.name, pool), ()))

    def room_for(self, kv_blocks: int) -> bool:
        """Whether a sequence with that many KV blocks could start here now."""
        return self.pools["kv"].available >= kv_blocks and self.pools["slot"].available > 0
