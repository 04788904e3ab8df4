"""The scheduler's load in seconds of service: what has come, what was served, and what waits where. Pure.

What a request will take at each stage is estimated from observed service times when it comes, and what work has taken
off is estimated the same way when it ends. A decode step serves many sequences at once; a token counts as its share of
the largest step there can be, so that a stage is at its limit when all its slots are taken all the time, and not
already when some sequence is being decoded.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from epdjax.serving.ledger import Ledger
from epdjax.serving.load import InstanceLoad, LoadSample
from epdjax.serving.request import Request, State
from epdjax.serving.service_times import Mean
from epdjax.serving.work import Decode, Encode, Prefill, Work

if TYPE_CHECKING:
    from epdjax.serving.scheduler import Scheduler

NOT_PREFILLED = (State.WAITING, State.ENCODING, State.PREFILL_QUEUED, State.PREFILLING, State.INTERRUPTED)


class LoadMeter:
    """See the module.

    Args:
        scheduler: whose load it is.
    """

    def __init__(self, scheduler: "Scheduler"):
        self._scheduler = scheduler
        self._arrived = dict.fromkeys("EPD", 0.0)
        self._served = dict.fromkeys("EPD", 0.0)
        # Of the tokens that an answer may have. Not the tokens themselves: long answers end late, and until they do the
        # short ones would stand for all.
        self._used = Mean(1.0)

    def arrived(self, request: Request) -> None:
        """A request has come. It comes to all its stages: one behind a slow stage would seem to have nothing to do."""
        for role, seconds in self._service(request).items():
            self._arrived[role] += seconds

    def ended(self, work: Work) -> None:
        """Work has ended well."""
        match work:
            case Encode():
                encode_s, width = self._encode()
                self._served["E"] += encode_s(work.units[0].bucket) * len(work.units) * width
            case Prefill():
                self._served["P"] += self._prompt_s(sum(chunk.length for chunk in work.chunks))
            case Decode():
                self._served["D"] += self._token_s() * len(work.sequences)

    def answered(self, request: Request) -> None:
        """A request has had its last token."""
        self._used.observe(request.delivered / request.spec.max_tokens)

    def sample(self, now: float) -> LoadSample:
        """The load as it is."""
        scheduler = self._scheduler
        between = dict.fromkeys("EPD", 0.0)
        decoding: dict[str, float] = {}
        for request in scheduler.requests.values():
            service = self._service(request)
            if request.state is State.WAITING:
                between["E"] += service["E"]
                between["P"] += service["P"]
            if request.d_name is None:
                between["D"] += service["D"]
            else:
                decoding[request.d_name] = decoding.get(request.d_name, 0.0) + service["D"]
        encode_s, width = self._encode()
        between["E"] += sum(encode_s(unit.bucket) * width for unit in scheduler.encoding.homeless)
        loads = (self._load(ledger, decoding.get(ledger.name, 0.0)) for ledger in scheduler.instances.values())
        return LoadSample(now, tuple(loads), between, dict(self._arrived), dict(self._served))

    def _load(self, ledger: Ledger, decoding_s: float) -> InstanceLoad:
        roles = "".join(role for role in ledger.spec.roles if ledger.takes(role))
        kv = ledger.pools["kv"]
        return InstanceLoad(
            ledger.name,
            roles,
            max(ledger.spec.encode_width, ledger.spec.tensor),
            {role: decoding_s if role == "D" else ledger.backlog_s(role) for role in ledger.spec.roles},
            ledger.watch.busy_s,
            kv.held / kv.capacity if kv.capacity else 0.0,
        )

    def _service(self, request: Request) -> Mapping[str, float]:
        """Device-seconds that a request still needs at each stage."""
        spec = request.spec
        encode_s, width = self._encode()
        buckets = spec.unit_buckets or (0,) * spec.units
        expected = max(self._used.value * spec.max_tokens, request.delivered + 1)
        waits = request.state in NOT_PREFILLED
        return {
            "E": sum(encode_s(bucket) for bucket in buckets) * width if waits else 0.0,
            "P": self._prompt_s(request.context - request.prefilled) if waits else 0.0,
            "D": self._token_s() * (expected - request.delivered),
        }

    def _performing(self, role: str) -> Ledger | None:
        return next((ledger for ledger in self._scheduler.instances.values() if ledger.performs(role)), None)

    def _encode(self) -> tuple[Callable[[int], float], int]:
        """Seconds that the first instance which encodes needs for a unit of a size, and its devices."""
        encoder = self._performing("E")
        return (encoder.times.encode_s, encoder.spec.encode_width) if encoder else (lambda bucket: 0.0, 1)

    def _prompt_s(self, tokens: int) -> float:
        prefiller = self._performing("P")
        return prefiller.times.prompt_s(tokens) * prefiller.spec.tensor if prefiller else 0.0

    def _token_s(self) -> float:
        decoder = self._performing("D")
        if decoder is None:
            return 0.0
        rows = max(1, decoder.spec.slots)
        return decoder.times.decode_rows_s(rows) / rows * decoder.spec.tensor
