"""Rotary embeddings: angles by hand, and those of transformers' Qwen2.5-VL and Qwen3-VL."""

from typing import Any

import numpy as np
import pytest

from epdjax.models.families.qwen_vl.fields import read_text
from epdjax.models.rope import Rope, rotary, rotate

SECTIONS = {"qwen2_5_vl": [2, 3, 3], "qwen3_vl": [4, 2, 2]}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "mrope": {"type": "mrope"},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def config(family: str, scaling: str) -> dict[str, Any]:
    """As published for transformers 4: ``rope_scaling``."""
    return {
        "model_type": family,
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rope_scaling": SCALINGS[scaling] | {"mrope_section": SECTIONS[family]},
    }


@pytest.mark.parametrize("scaling", list(SCALINGS))
@pytest.mark.parametrize("family", list(SECTIONS))
def test_sections_are_read_whatever_the_scaling(family: str, scaling: str) -> None:
    rope = read_text(config(family, scaling)).rope
    assert rope.sections == tuple(SECTIONS[family])
    assert rope.interleaved == (family == "qwen3_vl")
    assert Rope.from_hf(config(family, scaling)).sections == tuple(SECTIONS[family])
    assert rope.factor == (2.0 if scaling == "linear" else 1.0)
    assert (rope.llama3 is not None) == (scaling == "llama3")


def test_angles_of_linear_scaling_with_sections() -> None:
    """Half the frequencies, each at the position of its axis."""
    rope = read_text(config("qwen2_5_vl", "linear")).rope
    cos_bth, sin_bth = rotary(np.array([[[7, 20, 300]]], np.int32), rope, 16)
    positions = [7, 7, 20, 20, 20, 300, 300, 300]
    angles = [position * 10000.0 ** (-i / 8) / 2.0 for i, position in enumerate(positions)]
    np.testing.assert_allclose(cos_bth[0, 0], np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin_bth[0, 0], np.sin(angles), atol=2e-5)


@pytest.mark.torch
@pytest.mark.parametrize("scaling", [name for name in SCALINGS if name != "mrope"])
@pytest.mark.parametrize("family", list(SECTIONS))
def test_queries_are_turned_as_in_transformers(family: str, scaling: str) -> None:
    import torch
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl
    from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

    of_text = config(family, scaling)
    text = read_text(of_text)
    fields = {name: value for name, value in of_text.items() if name not in ("model_type", "rope_scaling")}
    parameters = SCALINGS[scaling] | {"mrope_section": SECTIONS[family], "rope_theta": 10000.0}
    if family == "qwen2_5_vl":
        hf = configuration_qwen2_5_vl.Qwen2_5_VLTextConfig(**fields, rope_parameters=parameters)
        embedding: Any = modeling_qwen2_5_vl.Qwen2_5_VLRotaryEmbedding(hf)
        module: Any = modeling_qwen2_5_vl
    else:
        hf = configuration_qwen3_vl.Qwen3VLTextConfig(**fields, rope_parameters=parameters)
        embedding = modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding(hf)
        module = modeling_qwen3_vl
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 400, (1, 9, 3)).astype(np.int32)
    q_btnh = rng.standard_normal((1, 9, 4, 16)).astype(np.float32)
    cos, sin = embedding(torch.zeros(1, 9, 64), torch.tensor(positions.transpose(2, 0, 1)))
    q = torch.tensor(q_btnh.transpose(0, 2, 1, 3))
    expected, _ = module.apply_rotary_pos_emb(q, q, cos, sin)
    turned = rotate(q_btnh, *rotary(positions, text.rope, 16))
    np.testing.assert_allclose(turned, expected.numpy().transpose(0, 2, 1, 3), atol=2e-4)
