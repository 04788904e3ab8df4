"""What the scheduler knows of one instance: its roles and sizes, its pools, its queues and what runs on it."""

import dataclasses
import math
from collections.abc import Hashable, Sequence

from epdjax.serving.arrivals import Arrivals
from epdjax.serving.blocks import BlockPool, blocks_for
from epdjax.serving.buckets import Buckets
from epdjax.serving.prefill_queue import PrefillQueue
from epdjax.serving.request import Request, RequestSpec
from epdjax.serving.service_times import ServiceTimes, Stopwatch
from epdjax.serving.unit_queue import UnitQueue
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
        tensor: devices that its language model is spread over.
        staging: encode results that may wait on it to be moved.
    """

    name: str
    roles: str
    kv_blocks: int = 0
    mm_blocks: int = 0
    slots: int = 0
    encode_width: int = 0
    tensor: int = 1
    staging: int = 4


class Ledger:
    """Pools and queues of one instance. Only the scheduler changes it.

    Args:
        pace: decode steps that a step of another stage may last where sequences are being decoded.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        buckets: Buckets,
        block_size: int,
        mm_block_size: int,
        times: ServiceTimes,
        pace: float,
    ):
        self.spec = spec
        self.pace = pace
        self.name = spec.name
        self.buckets = buckets
        self.block_size = block_size
        self.mm_block_size = mm_block_size
        self.times = times
        self.watch = Stopwatch(times)
        self.step_tokens = sorted({rows * tokens for rows, tokens in buckets.prefill})
        self.in_flight: dict[int, Work] = {}
        self.closing = ""  # roles it is giving up: nothing new comes for them
        self.evicting = False  # what is still here for them goes at once
        self.last_failed: frozenset[str] = frozenset()  # requests in the last work, if it failed: others come first
        self.probed_since = math.inf  # while it is probed it is given nothing
        self.failed_probes = 0  # in a row
        self._turn = 0
        self.renew()

    def renew(self) -> None:
        """Empty pools and queues."""
        spec = self.spec
        self.pools = {
            "kv": BlockPool(spec.kv_blocks),
            "mm": BlockPool(spec.mm_blocks),
            "slot": BlockPool(spec.slots),
            "staging": BlockPool(spec.staging if "E" in spec.roles else 0),
        }
        self.arrivals = Arrivals(self.pools["mm"])
        self.encode_queue = UnitQueue()
        self.prefill_queue = PrefillQueue(self.step_tokens, self.buckets.max_chunk)
        self.prompts: dict[str, Request] = {}  # assigned to this instance and not prefilled yet
        self.prompt_tokens = 0  # of `prompts`
        self.decodes: dict[str, Request] = {}  # assigned to this instance for decoding
        self.running: dict[str, Request] = {}  # of them those being decoded, in the order they came
        self.kv_holders: dict[str, Request] = {}  # KV blocks here are theirs

    def performs(self, role: str) -> bool:
        return role in self.spec.roles

    def takes(self, role: str) -> bool:
        """Whether it may be given new work of a role."""
        return role in self.spec.roles and role not in self.closing

    def become(self, spec: InstanceSpec, times: ServiceTimes, *, keeps_kv: bool) -> None:
        """Change roles and sizes. Nothing may be left here of roles it gives up, and no KV unless it is kept."""
        before, self.spec = self.spec, spec
        if not keeps_kv:
            self.pools["kv"], self.pools["slot"] = BlockPool(spec.kv_blocks), BlockPool(spec.slots)
        if not (keeps_kv and "P" in before.roles and "P" in spec.roles):
            self.pools["mm"] = BlockPool(spec.mm_blocks)
            self.arrivals = Arrivals(self.pools["mm"])
        if ("E" in before.roles) != ("E" in spec.roles):
            self.pools["staging"] = BlockPool(spec.staging if "E" in spec.roles else 0)
        self.times, self.watch = times, self.watch.of(times)
        self.closing, self.evicting, self._turn = "", False, 0
        self.probed_since, self.failed_probes, self.last_failed = math.inf, 0, frozenset()

    @property
    def since(self) -> float:
        """When the oldest thing that has not ended came to be run; infinite where there is none."""
        return min(self.watch.running_since, self.probed_since)

    def next_roles(self) -> str:
        """Its roles, beginning with the one after the role that ran last: each stage of a multi-role instance gets
        its turn, so that none starves."""
        roles = self.spec.roles
        return roles[self._turn :] + roles[: self._turn]

    def took_turn(self, role: str) -> None:
        self._turn = (self.spec.roles.index(role) + 1) % len(self.spec.roles)

    @property
    def sequences(self) -> int:
        """Requests that are decoded here, or will be."""
        return len(self.decodes)

    def assign_prompt(self, request: Request) -> None:
        """A request is prefilled here."""
        request.p_name = self.name
        self.prompts[request.request_id] = request
        self.prompt_tokens += request.context

    def release_prompt(self, request: Request) -> None:
        """It is prefilled, or not to be prefilled here after all."""
        request.p_name = None
        del self.prompts[request.request_id]
        self.prompt_tokens -= request.context

    def assign_sequence(self, request: Request) -> None:
        """A request is decoded here."""
        request.d_name = self.name
        self.decodes[request.request_id] = request

    def release_sequence(self, request: Request) -> None:
        """It is decoded no more, or not here."""
        request.d_name = None
        del self.decodes[request.request_id]
        self.running.pop(request.request_id, None)

    def mm_need(self, spec: RequestSpec) -> int:
        """MM blocks for all units of a request, those of equal content counted once."""
        return sum(blocks_for(tokens, self.mm_block_size) for tokens, _ in spec.contents.values())

    def mm_new(self, spec: RequestSpec) -> int:
        """Those of them for what is neither here nor on its way."""
        new = (tokens for key, (tokens, _) in spec.contents.items() if not self.has_mm(key))
        return sum(blocks_for(tokens, self.mm_block_size) for tokens in new)

    def reserve_mm(self, request: Request) -> list[int] | None:
        """Hold MM blocks for all units of a request: those that are here or on their way, and new ones.

        Returns:
            The units that have to be encoded; None (and nothing held) where there is no room.
        """
        spec, pool = request.spec, self.pools["mm"]
        keys = [spec.unit_key(i) for i in range(len(spec.unit_tokens))]
        held: list[tuple[int, ...]] = []
        blocks: dict[Hashable, tuple[int, ...]] = {}
        for key in spec.contents:  # first what is here, lest making room for the rest throws it out
            arrival = self.arrivals.get(key)
            if arrival is not None:
                pool.hold(arrival.blocks)
                blocks[key] = arrival.blocks
            elif (found := pool.share(key)) is not None:
                blocks[key] = found
        held += blocks.values()
        for key, (tokens, _) in spec.contents.items():
            if key not in blocks:
                new = pool.take(blocks_for(tokens, self.mm_block_size))
                if new is None:
                    for some in held:
                        pool.give_back(some)
                    return None
                held.append(new)
                blocks[key] = new
        request.holdings[self.name, "mm"] = tuple(block for some in held for block in some)
        return self._await(request, keys, blocks)

    def _await(self, request: Request, keys: Sequence[Hashable], blocks: dict[Hashable, tuple[int, ...]]) -> list[int]:
        """Enter a request among those that wait for its units; returns the units that nobody has asked for yet."""
        to_encode = []
        for index, key in enumerate(keys):
            request.mm_blocks[index] = blocks[key]
            if key not in self.arrivals and self.pools["mm"].knows(key):
                continue
            if key not in self.arrivals:
                self.arrivals.expect(key, blocks[key])
                to_encode.append(index)
            self.arrivals.wait(key, request, index)
            request.missing.add(index)
        return to_encode

    def could_hold(self, spec: RequestSpec) -> bool:
        """Whether the KV pool, were it empty, would hold prompt and answer; a preempted answer is prefilled again."""
        return blocks_for(spec.total_tokens, self.block_size) <= self.pools["kv"].capacity

    def could_prefill(self, spec: RequestSpec) -> bool:
        """Whether the pools, were they empty, would hold the request and its MM tokens."""
        return self.could_hold(spec) and self.mm_need(spec) <= self.pools["mm"].capacity

    def start_blocks(self, request: Request) -> int:
        """KV blocks a request takes where it starts: its context, and where it is decoded the first new token."""
        more = 1 if self.performs("D") else 0
        # A sequence that is being decoded would bring along what there is of its answer.
        context = max(request.context, request.spec.prompt_tokens + request.delivered)
        return blocks_for(min(context + more, request.spec.total_tokens), self.block_size)

    def found_blocks(self, request: Request) -> int:
        """Blocks of a request's context whose KV is here already.

        At least one token is left to be run: its logits make the next token of the answer.
        """
        keys, pool = request.spec.block_keys, self.pools["kv"]
        most = min(len(keys), (request.context - 1) // self.block_size)
        return next((i for i in range(most) if not pool.knows(keys[i])), most)

    def reserve_kv(self, request: Request) -> bool:
        """Hold KV blocks and a slot for a prompt, the KV that is here already included; False where there is no room.

        Where sequences are decoded, one block for each of them is left free, lest it has to be preempted at once.
        """
        spec, pool = request.spec, self.pools["kv"]
        found = self.found_blocks(request)
        shared = tuple(block for key in spec.block_keys[:found] for block in pool.share(key) or ())
        need = self.start_blocks(request) - len(shared)
        roomy = need + len(self.running) <= pool.available and self.pools["slot"].available
        new = pool.take(need) if roomy else None
        if new is None:
            pool.give_back(shared)
            return False
        request.holdings[self.name, "kv"] = shared + new
        self.kv_holders[request.request_id] = request
        self.take("slot", 1, request)
        request.prefilled = request.filled = request.cached = found * self.block_size
        return True

    def publish_kv(self, request: Request, start: int, end: int) -> None:
        """The KV of prompt tokens ``start .. end`` is in place: whole blocks of it can be shared from now on."""
        keys, blocks = request.spec.block_keys, request.kv_blocks(self.name)
        for i in range(start // self.block_size, min(end // self.block_size, len(keys))):
            self.pools["kv"].publish(keys[i], (blocks[i],))

    def has_turn(self, request: Request) -> bool:
        """Whether `request`, prefilled elsewhere, may start decoding here now: there is room, also for what the
        sequences here take next, and no prompt of this instance's own that goes before it waits for the room."""
        if not self.has_room(request):
            return False
        first = self.prefill_queue.first_waiting()
        return first is None or request.ranks["D"] < first.ranks["D"]

    def has_room(self, request: Request) -> bool:
        """Whether there is a slot, and KV blocks for a request's context and for what the sequences here take next."""
        need = self.start_blocks(request) + len(self.running)
        return need <= self.pools["kv"].available and bool(self.pools["slot"].available)

    @property
    def patience_s(self) -> float:
        """What a step of another stage may last, seconds, lest sequences wait too long for their next token."""
        return self.pace * self.times.decode_s if self.running else math.inf

    def max_units(self, bucket: int) -> int:
        """Encode units of a bucket in one step, all devices together: as many as there can be, or as many as keep the
        pace of what is being decoded here."""
        rows = self.buckets.unit_rows(self.buckets.unit_sizes[bucket])
        counts = [max(1, self.spec.encode_width * n) for n in rows]
        each, patience = self.times.encode_s(bucket), self.patience_s
        return max((count for count in counts if count * each <= patience), default=counts[0])

    def backlog_s(self, role: str) -> float:
        """Seconds of work of a role that were given to this instance and are not done."""
        if role == "P":
            return self.times.prompt_s(self.prompt_tokens)
        if role == "D":
            # A sequence counts as one decode step: steps cost little more for each, but each brings the next larger
            # step and the end of the room closer.
            return self.times.decode_s * self.sequences
        queue = self.encode_queue
        queued = sum(queue.count(bucket) * self.times.encode_s(bucket) for bucket in sorted(queue.buckets))
        running = (work.units for work in self.in_flight.values() if isinstance(work, Encode))
        return queued + sum(len(units) * self.times.encode_s(units[0].bucket) for units in running)

    def has_mm(self, key: Hashable) -> bool:
        """Whether MM tokens are here or on their way."""
        return key in self.arrivals or self.pools["mm"].knows(key)

    @property
    def full_step_queued(self) -> bool:
        """Whether the units of the next encode step fill it."""
        bucket = self.encode_queue.first.bucket
        return self.encode_queue.count(bucket) >= self.max_units(bucket)

    def next_units(self) -> tuple[Unit, ...]:
        """Take the units of the next encode step from the queue: the first, and those of its bucket behind it.

        Units of a request that has failed before are encoded without others, and if it was just now, after others.
        """
        queue, failed = self.encode_queue, self.last_failed
        self.last_failed = frozenset()
        first = next((u for u in queue if u.request_id not in failed), None) or queue.first
        return queue.take(first, self.max_units(first.bucket))

    def take(self, pool: str, count: int, request: Request) -> tuple[int, ...] | None:
        """Blocks of `pool` for `request`, entered among its holdings; None where there is no room."""
        blocks = self.pools[pool].take(count)
        if blocks is not None:
            request.holdings[self.name, pool] = request.holdings.get((self.name, pool), ()) + blocks
            if pool == "kv":
                self.kv_holders[request.request_id] = request
        return blocks

    def give_back(self, pool: str, request: Request) -> None:
        """Return what `request` holds of `pool`; nothing happens where it holds nothing."""
        self.pools[pool].give_back(request.holdings.pop((self.name, pool), ()))
        if pool == "kv":
            self.kv_holders.pop(request.request_id, None)
