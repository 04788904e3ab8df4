"""How long work takes on an instance, learned from what it took: for backlogs in seconds, and for the size of chunks.

Pure: the scheduler says when work was started and when it was done. An instance runs its work in order, so work that
was started while other work was running is counted from that one's end.
"""

import dataclasses
import math

from epdjax.serving.buckets import Buckets, smallest
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
        self._decode_rows: dict[int, Mean] = {}  # by rows of the padded step
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
                rows = smallest(self._buckets.decode_rows, len(work.sequences))
                self._decode_rows.setdefault(rows, Mean(0.0)).observe(took)

    def _padded(self, work: Prefill) -> int:
        shape = self._buckets.prefill_for(len(work.chunks), max(chunk.length for chunk in work.chunks))
        return shape[0] * shape[1] if shape else sum(chunk.length for chunk in work.chunks)

    @property
    def decode_s(self) -> float:
        """A decode step."""
        return self._decode.value

    def decode_rows_s(self, rows: int) -> float:
        """A decode step of so many sequences. What was not seen is put on a line through the two nearest that were; a
        step never gets shorter with more rows."""
        seen = sorted(self._decode_rows.items(), key=lambda item: abs(item[0] - rows))[:2]
        if len(seen) < 2:
            return seen[0][1].value if seen else self._decode.value
        (near, near_s), (far, far_s) = ((count, mean.value) for count, mean in seen)
        slope = max(0.0, (near_s - far_s) / (near - far))
        return max(near_s + slope * (rows - near), slope * rows)

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
        self.busy_s = 0.0

    def of(self, times: ServiceTimes) -> "Stopwatch":
        """This one, telling others from now on."""
        self.times = times
        return self

    def began(self, work: Work, now: float) -> None:
        self._began[work.work_id] = now

    @property
    def running_since(self) -> float:
        """When the oldest work that has not ended came to be run; infinite where there is none."""
        return max(min(self._began.values()), self._free_at) if self._began else math.inf

    def ended(self, work: Work, now: float) -> None:
        """A step has ended well. Moves are no steps: they occupy links."""
        if work.work_id in self._began:
            took = now - max(self._began.pop(work.work_id), self._free_at)
            self._free_at = now
            self.busy_s += took
            self.times.observe(work, took)

    def failed(self, work: Work) -> None:
        """A step has ended otherwise, which teaches nothing."""
        self._began.pop(work.work_id, None)
