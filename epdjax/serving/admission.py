"""Which requests may enter: those that could ever fit, while the queues are not full."""

import dataclasses
from collections.abc import Iterable, Sequence

from epdjax.serving.blocks import blocks_for
from epdjax.serving.buckets import Buckets
from epdjax.serving.errors import Overloaded, ServiceUnavailable, TooLong
from epdjax.serving.ledger import Ledger
from epdjax.serving.request import RequestSpec

STAGES = {"E": "encode", "P": "prefill", "D": "decode"}


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """Limits and policies.

    Attributes:
        buckets: shapes that work must fit.
        block_size, mm_block_size: tokens per KV and per MM block.
        max_model_len: longest prompt and answer together, tokens.
        max_requests: live requests; beyond them a request is refused.
        max_queued_units: encode units not yet encoded; likewise.
        max_media_bytes: host bytes of the media of live requests; likewise.
        order, assignment: names in `policies.ORDERS` and `policies.ASSIGNMENTS`, for all stages or for each; see
            `policies.per_stage`.
        decode_pace: decode steps that a prefill or encode step may last on an instance that also decodes.
    """

    buckets: Buckets
    block_size: int = 16
    mm_block_size: int = 16
    max_model_len: int = 2048
    max_requests: int = 1024
    max_queued_units: int = 8192
    max_media_bytes: int = 4 << 30
    order: str = "fcfs"
    assignment: str = "cache-aware"
    decode_pace: float = 4.0


@dataclasses.dataclass
class Queued:
    """Encode units that wait, and the media of all live requests.

    Attributes:
        expected: requests that will follow live ones, and have been let in with them. expected_units,
            expected_media_bytes: theirs.
    """

    units: int = 0
    media_bytes: int = 0
    expected: int = 0
    expected_units: int = 0
    expected_media_bytes: int = 0

    def expect(self, spec: RequestSpec, more: int) -> None:
        """So many more requests like this one will follow, or fewer."""
        self.expected += more
        self.expected_units += more * spec.units
        self.expected_media_bytes += more * spec.media_bytes

    def clear(self) -> None:
        """Nothing waits."""
        self.units = self.media_bytes = self.expected = self.expected_units = self.expected_media_bytes = 0


def check_served(spec: RequestSpec, unserved: str) -> None:
    """Refuse what needs a stage that has no instance.

    Raises:
        ServiceUnavailable: names the stages.
    """
    if needs(spec) & set(unserved):
        raise ServiceUnavailable(unserved_message(unserved))


def needs(spec: RequestSpec) -> set[str]:
    """The roles that a request needs."""
    return set("EPD" if spec.units else "PD")


def unserved_message(unserved: str) -> str:
    """What to say of roles that no instance performs."""
    return f"no instance is left that could {' and '.join(STAGES[role] for role in unserved)}; try again later"


def could_fit(spec: RequestSpec, ledgers: Iterable[Ledger]) -> bool:
    """Whether some instance could prefill a request, and some could decode it, were they empty."""
    prefill = any(ledger.performs("P") and ledger.could_prefill(spec) for ledger in ledgers)
    return prefill and any(ledger.performs("D") and ledger.could_hold(spec) for ledger in ledgers)


def check_fits(spec: RequestSpec, config: SchedulerConfig, ledgers: Sequence[Ledger]) -> None:
    """Refuse what no instance could ever hold.

    Raises:
        TooLong: says which limit, and what to change.
    """
    if spec.prompt_tokens + spec.max_tokens > config.max_model_len:
        raise TooLong(
            f"the prompt has {spec.prompt_tokens} tokens and the answer may have {spec.max_tokens}, together more than "
            f"the context of {config.max_model_len}; shorten the prompt, send fewer or smaller pictures, or lower "
            "max_tokens"
        )
    longest = max((end - start for start, end in spec.whole), default=0)
    if longest > config.buckets.max_chunk:
        raise TooLong(
            f"a picture takes {longest} tokens, which must be prefilled together, and a step takes at most "
            f"{config.buckets.max_chunk}; restart with a larger --max-chunk"
        )
    prefillers = [ledger for ledger in ledgers if ledger.performs("P")]
    if prefillers and not any(ledger.could_prefill(spec) for ledger in prefillers):
        mm = max(ledger.pools["mm"].capacity for ledger in prefillers)
        kv = max(ledger.pools["kv"].capacity for ledger in prefillers)
        raise TooLong(
            f"the request needs {prefillers[0].mm_need(spec)} MM blocks and "
            f"{blocks_for(spec.total_tokens, config.block_size)} KV blocks; a prefill instance has {mm} and {kv}; "
            "send fewer pictures, lower max_tokens, or restart with larger --mm-blocks and --kv-blocks"
        )
    decoders = [ledger for ledger in ledgers if ledger.performs("D")]
    if decoders and not any(ledger.could_hold(spec) for ledger in decoders):
        kv = max(ledger.pools["kv"].capacity for ledger in decoders)
        raise TooLong(
            f"prompt and answer need {blocks_for(spec.total_tokens, config.block_size)} KV blocks and a decode "
            f"instance has {kv}; lower max_tokens, or restart with larger --kv-blocks"
        )


def check_load(spec: RequestSpec, config: SchedulerConfig, live_requests: int, queued: Queued) -> None:
    """Refuse what the queues have no room for now; a request for several answers counts as so many.

    Raises:
        Overloaded: says which queue is full.
    """
    requests = live_requests + queued.expected
    units, media_bytes = queued.units + queued.expected_units, queued.media_bytes + queued.expected_media_bytes
    if requests + spec.answers > config.max_requests:
        raise Overloaded(f"{requests} of {config.max_requests} requests are being served; try again", retry_after_s=1.0)
    if spec.units and units + spec.answers * spec.units > config.max_queued_units:
        raise Overloaded(f"{units} encode units are queued; try again", retry_after_s=1.0)
    if spec.media_bytes and media_bytes + spec.answers * spec.media_bytes > config.max_media_bytes:
        raise Overloaded(f"{media_bytes >> 20} MiB of media are held; try again", retry_after_s=1.0)
