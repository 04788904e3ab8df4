"""A request as the scheduler sees it: sizes, state, and everything it holds."""

import dataclasses
import enum
import functools
import math
from collections.abc import Hashable, Mapping

Rank = tuple[float, int]


class State(enum.Enum):
    """The life of a request; text-only requests start at `PREFILL_QUEUED`."""

    WAITING = "waiting"  # has media; no instance chosen yet
    ENCODING = "encoding"  # units outstanding, or their MM tokens on the way
    PREFILL_QUEUED = "prefill_queued"
    PREFILLING = "prefilling"
    MOVE_QUEUED = "move_queued"  # prefilled; waits for room on a D instance
    MOVING_KV = "moving_kv"
    DECODING = "decoding"
    INTERRUPTED = "interrupted"  # what it had is lost or given up; starts over when no running work touches it
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
        priority: lower goes earlier, as in vLLM; see `policies.PRIORITY_S`.
        slo_s: its first token is due so many seconds after its arrival; what the deadline policy goes by.
        timeout_s: it ends in an error if it is not finished so many seconds after its arrival.
        client, user: whose it is, and of which of his users, as far as the server knows; what the order ``fair`` goes
            by.
        answers: it stands for so many requests; the others follow it (`follows` is its id) and were let in with it.
        media_bytes: host memory its media take. They are kept until the request ends, since a preempted request may
            need them again.
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
    priority: int = 0
    slo_s: float = 10.0
    timeout_s: float = math.inf
    client: str = ""
    user: str = ""
    answers: int = 1
    follows: str = ""

    @property
    def total_tokens(self) -> int:
        """KV entries at the very most: the last generated token is never run."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def units(self) -> int:
        """Encode units."""
        return len(self.unit_tokens)

    def unit_key(self, index: int) -> Hashable:
        """The key of a unit; its own where nothing is shared."""
        return self.unit_keys[index] if self.unit_keys else (self.request_id, index)

    @functools.cached_property
    def contents(self) -> dict[Hashable, tuple[int, int]]:
        """(MM tokens, bucket) of each unit by its key, those of equal content once."""
        buckets = self.unit_buckets or (0,) * self.units
        return {self.unit_key(i): both for i, both in enumerate(zip(self.unit_tokens, buckets, strict=True))}

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
        ranks: for each role its place in the order of that stage; the smallest goes first.
        p_name: the instance that prefills it, from its choice until it is prefilled. d_name: the one that decodes it.
        kv_source: where its KV is moved from.
        mm_blocks: per unit, its MM blocks on the P instance.
        holdings: (instance, pool) -> blocks held there.
        missing: units whose MM tokens are not on the P instance yet.
        resumed: answer tokens that were there when it was preempted; prefill runs them again behind the prompt.
        prefilled: tokens of the context whose prefill was started, or whose KV was found.
        cached: tokens of the context whose KV was found.
        filled: tokens of the context whose KV is in place where it is prefilled.
        filled_at: when all of it was, seconds.
        moved: of those, the ones whose move to the D instance was started.
        scheduled: answer tokens whose step was started (the first by prefill).
        delivered: answer tokens whose step is finished.
        in_flight: works now running that touch it; what it holds is given back only when none is.
        pausing: preempted, and goes as soon as none is.
        returns: where nobody else has room for it, it goes on where it was.
        failures: its steps and moves that failed. suspect: it has got nowhere since the last one, and runs alone.
        avoid: the instances where that was.
        to_follow: requests for which there is room kept, see `RequestSpec.answers`.
        begun: the roles that were begun with.
    """

    spec: RequestSpec
    arrived: float
    ranks: Mapping[str, Rank]
    state: State = State.WAITING
    p_name: str | None = None
    d_name: str | None = None
    kv_source: str = ""
    mm_blocks: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    holdings: dict[tuple[str, str], tuple[int, ...]] = dataclasses.field(default_factory=dict)
    missing: set[int] = dataclasses.field(default_factory=set)
    resumed: int = 0
    prefilled: int = 0
    cached: int = 0
    filled: int = 0
    filled_at: float = 0.0
    moved: int = 0
    scheduled: int = 0
    delivered: int = 0
    in_flight: int = 0
    pausing: bool = False
    returns: bool = False
    failures: int = 0
    suspect: bool = False
    avoid: set[str] = dataclasses.field(default_factory=set)
    to_follow: int = 0
    begun: str = ""

    @property
    def request_id(self) -> str:
        return self.spec.request_id

    @property
    def number(self) -> int:
        """How many came before it."""
        return self.ranks["E"][1]

    @property
    def deadline(self) -> float:
        return self.arrived + self.spec.timeout_s

    @property
    def context(self) -> int:
        """Tokens that prefill runs: the prompt, and what there was of the answer when the request was preempted."""
        return self.spec.prompt_tokens + self.resumed

    @property
    def position(self) -> int:
        """Where in the sequence the next decode step runs its token."""
        return self.spec.prompt_tokens + self.scheduled - 1

    @property
    def all_scheduled(self) -> bool:
        """Whether the step of the last token it may have was started."""
        return self.scheduled == self.spec.max_tokens

    @property
    def ready(self) -> int:
        """Tokens of the context, from the start, whose MM tokens are all there."""
        if not self.missing:
            return self.context
        return min(self.spec.unit_starts[i] for i in self.missing) if self.spec.unit_starts else 0

    def kv_blocks(self, instance: str) -> tuple[int, ...]:
        return self.holdings[instance, "kv"]

    def slot(self, instance: str) -> int:
        return self.holdings[instance, "slot"][0]
