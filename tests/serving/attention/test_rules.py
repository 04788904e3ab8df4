"""The choice of kernels is a table: platform x stage x type x head dim x mask -> kernel."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.serving.attention.rules import NAMES, REFERENCE, RULES, STAGES, Need, choose
from epdjax.serving.config import EngineConfig

H100 = Need("prefill", "gpu", 9.0, "bfloat16", (128,), kv_heads=4)
TPU = dataclasses.replace(H100, platform="tpu", capability=0.0)
CPU = dataclasses.replace(H100, platform="cpu", capability=0.0, dtype="float32")
TABLE = [
    (H100, {}, "cudnn"),
    (H100, {"stage": "encode", "head_dims": (72, 128)}, "cudnn"),  # MiniCPM-V: SigLIP and its resampler
    (H100, {"stage": "encode", "head_dims": (80,)}, "cudnn"),
    (H100, {"stage": "encode", "head_dims": (20,)}, "reference"),
    (H100, {"stage": "encode", "dtype": "float32"}, "reference"),
    (H100, {"stage": "decode"}, "pallas"),
    (H100, {"stage": "decode", "head_dims": (64,), "softcap": True}, "pallas"),
    (H100, {"stage": "decode", "head_dims": (80,)}, "reference"),
    (H100, {"head_dims": (80,)}, "cudnn"),
    (H100, {"head_dims": (256,), "bidirectional": True}, "cudnn"),
    (H100, {"head_dims": (256,), "capability": 8.0}, "pallas"),
    (H100, {"softcap": True}, "pallas"),
    (H100, {"dtype": "float16"}, "cudnn"),
    (H100, {"dtype": "float32"}, "reference"),
    (H100, {"capability": 7.5}, "reference"),
    (H100, {"capability": 0.0}, "reference"),  # a GPU of another maker
    (TPU, {}, "ragged"),
    (TPU, {"stage": "decode", "softcap": True}, "ragged"),
    (TPU, {"stage": "encode"}, "reference"),
    (TPU, {"head_dims": (64,)}, "reference"),
    (TPU, {"head_dims": (256,)}, "reference"),
    (TPU, {"bidirectional": True}, "reference"),
    (TPU, {"kv_heads": 3}, "reference"),
    (TPU, {"dtype": "float32"}, "reference"),
    *((CPU, {"stage": stage}, "rowwise") for stage in STAGES.values()),
    (CPU, {"dtype": "bfloat16", "head_dims": (20,), "softcap": True, "bidirectional": True}, "rowwise"),
    (CPU, {"dtype": "float64"}, "reference"),
]


@pytest.mark.parametrize(("need", "change", "kernel"), TABLE)
def test_the_table(need: Need, change: dict[str, object], kernel: str) -> None:
    assert choose(dataclasses.replace(need, **change)).kernel == kernel


@pytest.mark.parametrize(
    ("need", "change", "wanted", "kernel", "because"),
    [
        (H100, {}, "pallas", "pallas", None),
        (H100, {}, "reference", "reference", None),
        (H100, {"stage": "decode"}, "cudnn", "reference", "cudnn does not decode on gpu"),
        (H100, {"softcap": True}, "auto", "pallas", "cudnn cannot cap scores"),
        (H100, {"softcap": True}, "cudnn", "reference", "cudnn cannot cap scores"),
        (H100, {"dtype": "float32"}, "pallas", "reference", "pallas takes bfloat16, float16, not float32"),
        (H100, {"head_dims": (64, 80)}, "pallas", "reference", "pallas takes head dims 16, 32, 64, 128, 256, not 80"),
        (H100, {"capability": 7.5}, "cudnn", "reference", "wants compute capability 9.0, the device has 7.5"),
        (TPU, {"kv_heads": 3}, "auto", "reference", "KV heads on a device, not 3"),
        (TPU, {"bidirectional": True}, "auto", "reference", "ragged cannot let a token see later ones"),
        (CPU, {}, "pallas", "pallas", None),
        (CPU, {"stage": "encode"}, "pallas", "reference", "pallas does not encode on cpu"),
        (CPU, {}, "ragged", "reference", "ragged does not prefill on cpu"),
    ],
)
def test_what_is_asked_for(
    need: Need, change: dict[str, object], wanted: str, kernel: str, because: str | None
) -> None:
    choice = choose(dataclasses.replace(need, **change), wanted)
    assert choice.kernel == kernel
    if because is None:
        assert choice.refusals == ()
    else:
        assert because in choice.refusals[-1]


NEEDS = st.builds(
    Need,
    stage=st.sampled_from(sorted(STAGES.values())),
    platform=st.sampled_from(["cpu", "gpu", "tpu", "npu"]),
    capability=st.sampled_from([0.0, 7.5, 8.0, 8.9, 9.0, 10.0]),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    head_dims=st.lists(st.integers(1, 300), min_size=1, max_size=2).map(tuple),
    kv_heads=st.integers(1, 40),
    softcap=st.booleans(),
    bidirectional=st.booleans(),
)


@given(NEEDS, st.sampled_from(NAMES))
def test_a_kernel_is_never_given_what_it_cannot_do(need: Need, wanted: str) -> None:
    choice = choose(need, wanted)
    if choice.kernel == REFERENCE:
        assert (
            wanted == REFERENCE
            or choice.refusals
            or not any(rule.platform == need.platform and need.stage in rule.stages for rule in RULES if not rule.asked)
        )
    else:
        assert wanted in ("auto", choice.kernel)
        assert any(
            rule.kernel == choice.kernel
            and rule.platform == need.platform
            and need.stage in rule.stages
            and rule.refuses(need) is None
            for rule in RULES
        )


def test_other_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match="attention must be one of auto, reference, cudnn, pallas, rowwise, ragged, not 'flash'"
    ):
        EngineConfig(model="x", attention="flash")
