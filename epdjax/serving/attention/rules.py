"""Which kernel attends, as plain data: what each can do, in order of preference, and the choice among them.

``reference`` is `epdjax.models.attention`: it runs everywhere, does everything, and is what every other kernel is
checked against. The others are faster where their rule holds.
"""

import dataclasses

STAGES = {"E": "encode", "P": "prefill", "D": "decode"}
REFERENCE = "reference"

HALF = frozenset({"bfloat16", "float16"})
EIGHTS = frozenset(range(8, 129, 8))
WIDE_EIGHTS = frozenset(range(8, 257, 8))
POWERS = frozenset({16, 32, 64, 128, 256})
ANY = frozenset[int]()


@dataclasses.dataclass(frozen=True)
class Need:
    """What a stage asks of a kernel.

    Attributes:
        stage: ``encode``, ``prefill`` or ``decode``.
        platform: ``cpu``, ``gpu`` or ``tpu``.
        capability: compute capability of a GPU, 9.0 for an H100; 0 for what is no NVIDIA GPU.
        dtype: of queries, keys and values, by name.
        head_dims: widths of the attention heads; an encoder may have several.
        kv_heads: on each device.
        softcap: whether scores are capped.
        bidirectional: whether a token may see later ones of its chunk.
    """

    stage: str
    platform: str
    capability: float
    dtype: str
    head_dims: tuple[int, ...]
    kv_heads: int = 1
    softcap: bool = False
    bidirectional: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where a kernel can be used; see `Need`.

    Attributes:
        kernel: its name, as ``--attention`` takes it.
        capability: the least that will do.
        dtypes, head_dims, kv_heads: those it takes; an empty set: any.
        softcap, bidirectional: whether it can do that.
        asked: whether it is used only where it is asked for by name.
    """

    kernel: str
    platform: str
    stages: frozenset[str]
    capability: float = 0.0
    dtypes: frozenset[str] = HALF
    head_dims: frozenset[int] = ANY
    kv_heads: frozenset[int] = ANY
    softcap: bool = True
    bidirectional: bool = True
    asked: bool = False

    def refuses(self, need: Need) -> str | None:
        """Why the kernel cannot do it, in words; None where it can."""
        if need.capability < self.capability:
            return f"wants compute capability {self.capability}, the device has {need.capability}"
        if need.dtype not in self.dtypes:
            return f"takes {_listed(self.dtypes)}, not {need.dtype}"
        if self.head_dims and (others := sorted(set(need.head_dims) - self.head_dims)):
            return f"takes head dims {_listed(self.head_dims)}, not {_listed(others)}"
        if self.kv_heads and need.kv_heads not in self.kv_heads:
            return f"takes {_listed(self.kv_heads)} KV heads on a device, not {need.kv_heads}"
        if need.softcap and not self.softcap:
            return "cannot cap scores"
        if need.bidirectional and not self.bidirectional:
            return "cannot let a token see later ones"
        return None


# The first rule that holds wins. Sources: JAX's checks of cuDNN flash attention (`check_is_flash_attention`: multiples
# of 8 up to 128, from Hopper on up to 256); Triton's tiles, whose sides are powers of two; JAX's ragged paged
# attention, which the TPU compiler takes for heads of 128 only, and whose tiling wants KV heads to fill sublanes.
RULES = (
    Rule("cudnn", "gpu", frozenset({"encode", "prefill"}), 8.0, head_dims=EIGHTS, softcap=False),
    Rule("cudnn", "gpu", frozenset({"encode", "prefill"}), 9.0, head_dims=WIDE_EIGHTS, softcap=False),
    Rule("pallas", "gpu", frozenset({"prefill", "decode"}), 8.0, head_dims=POWERS),
    Rule("rowwise", "cpu", frozenset({"encode", "prefill", "decode"}), dtypes=HALF | {"float32"}),
    # Run by Pallas' interpreter: to look into the kernel where there is no GPU, and to test it.
    Rule("pallas", "cpu", frozenset({"prefill", "decode"}), dtypes=HALF | {"float32"}, asked=True),
    Rule(
        "ragged",
        "tpu",
        frozenset({"prefill", "decode"}),
        dtypes=frozenset({"bfloat16"}),
        head_dims=frozenset({128}),
        kv_heads=frozenset({1, 2, 4, *range(8, 129, 8)}),
        bidirectional=False,
    ),
)
NAMES = ("auto", REFERENCE, *dict.fromkeys(rule.kernel for rule in RULES))


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kernel, and why not another.

    Attributes:
        kernel: ``reference`` or the `Rule.kernel` chosen.
        refusals: of the kernels that would have come before it, each in words.
    """

    kernel: str
    refusals: tuple[str, ...] = ()


def choose(need: Need, wanted: str = "auto") -> Choice:
    """The kernel for a stage.

    Args:
        wanted: one of `NAMES`; a kernel that cannot do what is needed gives way to the reference.
    """
    if wanted == REFERENCE:
        return Choice(REFERENCE)
    named = [rule for rule in RULES if wanted == rule.kernel or (wanted == "auto" and not rule.asked)]
    fitting = [rule for rule in named if rule.platform == need.platform and need.stage in rule.stages]
    refusals: dict[str, str] = {}  # by kernel; of several rules for one, the last says most
    for rule in fitting:
        reason = rule.refuses(need)
        if reason is None:
            refusals.pop(rule.kernel, None)
            return Choice(rule.kernel, tuple(refusals.values()))
        refusals[rule.kernel] = f"{rule.kernel} {reason}"
    if wanted != "auto" and not fitting:
        refusals[wanted] = f"{wanted} does not {need.stage} on {need.platform}"
    return Choice(REFERENCE, tuple(refusals.values()))


def _listed(values: object) -> str:
    """Values in words: runs of equal steps are shortened."""
    ordered = sorted(values)  # type: ignore[call-overload]
    if len(ordered) > 6 and isinstance(ordered[0], int):
        return f"{ordered[0]}, {ordered[1]}, ... {ordered[-1]}"
    return ", ".join(map(str, ordered))
