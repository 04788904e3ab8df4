"""A request as the scheduler sees it: sizes, state, and everything it holds."""

import dataclasses
import enum
from collections.abc import Hashable


class State(enum.Enum):
    """The life of a request; text-only requests start at `PREFILL_QUEUED`."""

    WAITING = "waiting"  # has media; no instance chosen yet
    ENCODING = "encoding"  # units outstanding, or their MM tokens on the way
    PREFILL_QUEUED = "prefill_queued"
    PREFILLING = "prefilling"
    MOVE_QUEUED = "move_queued"  # prefilled; waits for room on a D instance
    MOVING_KV = "moving_kv"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class RequestSpec:
    """What the scheduler must know of a request.

    Attributes:
        request_id: unique among live requests.
        prompt_tokens: length of the expanded prompt, MM tokens included.
        max_tokens: tokens to generate at most, at least 1.
        unit_tokens: MM tokens that each encode unit makes, in prompt order.
        unit_keys: what tells each unit's MM tokens from all others (a hash of its content); empty: nothing is shared.
        unit_starts: the first prompt position that needs each unit; empty: all are needed at once.
        block_keys: what tells the KV of each full block of the prompt from all others (chained hashes of tokens and
            media); empty: nothing is shared.
        unit_buckets: for each of them the number of its size among `Buckets.unit_sizes`; empty: all 0.
        whole: (start, end) of prompt spans, ascending, that must be prefilled in one chunk, because their tokens
            attend to one another in both directions.
        media_bytes: host memory its media take until they are encoded.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    unit_tokens: tuple[int, ...] = ()
    media_bytes: int = 0
    unit_buckets: tuple[int, ...] = ()
    unit_keys: tuple[Hashable, ...] = ()
    unit_starts: tuple[int, ...] = ()
    block_keys: tuple[Hashable, ...] = ()
    whole: tuple[tuple[int, int], ...] = ()

    @property
    def total_tokens(self) -> int:
        """KV entries at the very most: the last generated token is never run."""
        return self.prompt_tokens + self.max_tokens - 1

    def unit_key(self, index: int) -> Hashable:
        """The key of a unit; its own where nothing is shared."""
        return self.unit_keys[index] if self.unit_keys else (self.request_id, index)

    def not_inside(self, end: int) -> int:
        """`end`, or the start of the whole span that it would split."""
        for first, last in self.whole:
            if first < end < last:
                return first
        return end


@dataclasses.dataclass(eq=False)
class Request:
    """A live request: its place in the pipeline and its holdings. Only the scheduler changes it.

    Attributes:
        p_name, d_name: the instances chosen for it, or None.
        mm_blocks: per unit, its MM blocks on the P instance.
        holdings: (instance, pool) -> blocks held there.
        missing: units whose MM tokens are not on the P instance yet.
        prefilled: prompt tokens whose prefill was started, or whose KV was found.
        cached: prompt tokens whose KV was found.
        scheduled: answer tokens whose step was started (the first by prefill).
        delivered: answer tokens whose step is finished.
        in_flight: works now running that touch it; what it holds is given back only when none is.
    """

    spec: RequestSpec
    arrived: float
    order: int
    state: State = State.WAITING
    p_name: str | None = None
    d_name: str | None = None
    mm_blocks: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    holdings: dict[tuple[str, str], tuple[int, ...]] = dataclasses.field(default_factory=dict)
    missing: set[int] = dataclasses.field(default_factory=set)
    prefilled: int = 0
    cached: int = 0
    scheduled: int = 0
    delivered: int = 0
    in_flight: int = 0

    @property
    def request_id(self) -> str:
        return self.spec.request_id

    @property
    def ready(self) -> int:
        """Prompt tokens, from the start, whose MM tokens are all there."""
        if not self.missing:
            return self.spec.prompt_tokens
        return min(self.spec.unit_starts[i] for i in self.missing) if self.spec.unit_starts else 0

    def kv_blocks(self, instance: str) -> tuple[int, ...]:
        return self.holdings[instance, "kv"]

    def slot(self, instance: str) -> int:
        return self.holdings[instance, "slot"][0]
