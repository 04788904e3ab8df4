"""How long work takes on an instance, learned from what it took: for backlogs in seconds, and for the size of chunks.

Pure: the scheduler says when work was started and when it was done. An instance runs its work in order, so work that
was started while other work was running is counted from that one's end.
"""

import dataclasses

from epdjax.serving.buckets import Buckets
from epdjax.serving.work import Decode, Encode, Prefill, Work

SMOOTHING = 0.2  # weight of the newest observation
PRIOR_TOKEN_S = (
    1e-4  # of a prompt token, a unit of the smallest size, a tenth of a decode step, until something is known
)


@dataclasses.dataclass
class Mean:
    """An exponentially smoothed mean; `value` is a guess until something was observed."""

    value: float
    seen: bool = False

    def observe(self, value: float) -> None:
        self.value = value if not self.seen else self.value + SMOOTHING * (value - self.value)
        self.seen = True


class ServiceTimes:
    """Smoothed service times, seconds, of the steps of instances that are like one another."""

    def __init__(self, buckets: Buckets):
        self._buckets = buckets
        self._decode = Mean(10 * PRIOR_TOKEN_S)
        self._prefill: dict[int, Mean] = {}  # by tokens of the padded step
        self._encode = [Mean(PRIOR_TOKEN_S * size) for size in buckets.unit_sizes]  # of a unit

    def observe(self, work: Work, took: float) -> None:
        """A step took so many seconds. Moves are not counted: they occupy links, not instances."""
        match work:
            case Encode():
                self._encode[work.units[0].bucket].observe(took / len(work.units))
            case Prefill():
                self._prefill.setdefault(self._padded(work), Mean(0.0)).observe(took)
            case Decode():
                self._decode.observe(took)

    def _padded(self, work: Prefill) -> int:
        shape = self._buckets.prefill_for(len(work.chunks), max(chunk.length for chunk in work.chunks))
        return shape[0] * shape[1] if shape else sum(chunk.length for chunk in work.chunks)

    @property
    def decode_s(self) -> float:
        """A decode step."""
        return self._decode.value

    def encode_s(self, bucket: int) -> float:
        """An encode unit of a size, its share of a step."""
        if not self._encode[bucket].seen:
            known = [(mean.value / self._buckets.unit_sizes[i]) for i, mean in enumerate(self._encode) if mean.seen]
            if known:
                return self._buckets.unit_sizes[bucket] * sum(known) / len(known)
        return self._encode[bucket].value

    def prefill_s(self, tokens: int) -> float:
        """A prefill step of so many tokens, padding included; between and beyond what was seen in proportion."""
        if tokens in self._prefill:
            return self._prefill[tokens].value
        if not self._prefill:
            return PRIOR_TOKEN_S * tokens
        nearest = min(self._prefill, key=lambda n: abs(n - tokens))
        return self._prefill[nearest].value * tokens / nearest

    def prompt_s(self, tokens: int) -> float:
        """Prefill of a prompt, or of several, of so many tokens together, in chunks as long as they may be."""
        chunk = self._buckets.max_chunk
        return self.prefill_s(chunk) * tokens / chunk


class Stopwatch:
    """Tells the service times of one instance's work from when it was started and when it ended."""

    def __init__(self, times: ServiceTimes):
        self.times = times
        self._began: dict[int, float] = {}
        self._free_at = 0.0

    def began(self, work: Work, now: float) -> None:
        self._began[work.work_id] = now

    def ended(self, work: Work, now: float) -> None:
        """A step has ended well."""
        took = now - max(self._began.pop(work.work_id, now), self._free_at)
        self._free_at = now
        self.times.observe(work, took)

    def failed(self, work: Work) -> None:
        """A step has ended otherwise, which teaches nothing."""
        self._began.pop(work.work_id, None)
