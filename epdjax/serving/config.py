"""Settings of a deployment, validated where they enter."""

import dataclasses
from pathlib import Path

from epdjax.serving.attention.rules import NAMES as ATTENTION
from epdjax.serving.buckets import Buckets
from epdjax.serving.controller import ControllerSettings
from epdjax.serving.limits import ServingLimits
from epdjax.serving.policies import ASSIGNMENTS, ORDERS, per_stage

DTYPES = ("auto", "float32", "bfloat16", "float16")
ROLE_SWITCHING = ("off", "advise", "auto")
LADDERS = ("full", "trimmed")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Everything that can be set about an engine.

    Attributes:
        model: checkpoint folder.
        mesh: mesh spec, or ``auto``.
        chat_template: file of the chat template to use instead of the checkpoint's own; None: its own.
        served_model_name: what clients call the model; None: the folder's name.
        dtype: of weights and caches; ``auto``: float32 on CPU, else the checkpoint's own.
        max_model_len: longest prompt and answer together, tokens; None: the model's own limit, at most 8192.
        block_size: tokens per KV block.
        kv_blocks: KV blocks per instance; None: what memory leaves (on CPU: enough for half the slots at full length).
        mm_blocks: MM blocks (of one unit's tokens) per prefill instance; None: enough for `max_seqs` media items.
        max_seqs: sequences an instance decodes together.
        max_chunk: prompt tokens per prefill step.
        max_units: encode units per device and step.
        max_requests, max_queued_units: bounds of the queues.
        max_media_bytes: host bytes of the media of all live requests.
        irp: share the units of a request among the E devices (intra-request parallel encoding).
        attention: kernel that stages attend with where it can be used, see `epdjax.serving.attention.rules`; ``auto``:
            the best for each.
        order, assignment: scheduling policies, one for all stages or ``encode=sjf,prefill=deadline``.
        max_output_tokens: longest answer that a request may ask for, and gets where it does not say; None: what the
            context leaves.
        request_timeout_s: a request that is not finished after so many seconds ends in an error, whatever it asked for;
            None: no limit.
        slo_s: the first token of a request that says nothing else is due after so many seconds (order ``deadline``).
        decode_pace: decode steps that a prefill or encode step may last on an instance that also decodes.
        role_switching: ``auto``: instances change roles as the load changes; ``advise``: it is only logged which would;
            ``off``: only by hand.
        controller: when ``auto`` and ``advise`` think a switch worth it.
        hang_s: a step that has not ended after so many seconds is taken for dead, and its instance is taken out.
        move_s: a move of MM tokens or KV that has not ended after so many seconds is given up and made again; both its
            ends are looked at.
        offload_s: when an instance changes roles, what may finish where it is has so many seconds; then it is moved or
            started over.
        memory_share: of a device's memory, the part that weights, caches and steps may take.
        buckets: compiled shapes: ``full``, `default_buckets`; ``trimmed``, half as many of each kind, for quick
            starts at the price of more padding; or just these.
        compile_cache: folder of the persistent compilation cache; None: no cache on disk.
        preprocess_threads: requests whose media are decoded and cut at a time, by as many decoder processes.
        limits: what a request's media may cost.

    Raises:
        ValueError: a value out of range, named.
    """

    model: str | Path
    mesh: str = "auto"
    chat_template: str | Path | None = None
    served_model_name: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int = 16
    kv_blocks: int | None = None
    mm_blocks: int | None = None
    max_seqs: int = 16
    max_chunk: int = 512
    max_units: int = 8
    max_requests: int = 1024
    max_queued_units: int = 8192
    max_media_bytes: int = 4 << 30
    irp: bool = True
    attention: str = "auto"
    order: str = "fair"
    assignment: str = "cache-aware"
    max_output_tokens: int | None = None
    request_timeout_s: float | None = None
    slo_s: float = 10.0
    decode_pace: float = 4.0
    role_switching: str = "off"
    controller: ControllerSettings = dataclasses.field(default_factory=ControllerSettings)
    hang_s: float = 120.0
    move_s: float = 120.0
    offload_s: float = 0.5
    memory_share: float = 0.9
    buckets: Buckets | str = "full"
    compile_cache: str | Path | None = None
    preprocess_threads: int = 4
    limits: ServingLimits = dataclasses.field(default_factory=ServingLimits)

    def __post_init__(self) -> None:
        whole = (
            "block_size max_seqs max_chunk max_units max_requests max_queued_units max_media_bytes preprocess_threads"
        )
        for name in [*whole.split(), "max_model_len", "kv_blocks", "mm_blocks", "max_output_tokens"]:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.max_chunk % self.block_size:
            raise ValueError(f"max_chunk {self.max_chunk} must be a multiple of block_size {self.block_size}")
        if not 0 < self.memory_share <= 1:
            raise ValueError(f"memory_share must be in (0, 1], not {self.memory_share!r}")
        for name in ("decode_pace", "slo_s", "request_timeout_s", "hang_s", "move_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, not {value!r}")
        if not isinstance(self.buckets, Buckets) and self.buckets not in LADDERS:
            raise ValueError(f"buckets must be one of {', '.join(LADDERS)}, or Buckets, not {self.buckets!r}")
        known_names = (("dtype", DTYPES), ("attention", ATTENTION), ("role_switching", ROLE_SWITCHING))
        for name, known in known_names:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        per_stage(self.order, tuple(ORDERS), "order")
        per_stage(self.assignment, tuple(ASSIGNMENTS), "assignment")
