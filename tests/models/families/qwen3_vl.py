"""Qwen3-VL: tiny checkpoints, and transformers as their judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.models import qwen_vl_tiny
from tests.models.families.reference import Reference
from tests.models.qwen_vl_tiny import VOCAB_ROWS, conversations, special_ids, write_checkpoint

__all__ = ["HUB_NAMES", "MODEL_TYPE", "VARIANTS", "conversations", "hub_config", "make", "reference"]

MODEL_TYPE = "qwen3_vl"
VARIANTS: dict[str, dict[str, Any]] = {
    "tied, two levels": {},
    "untied, three levels": {
        "tied": False,
        "levels": (0, 1, 2),
        "vision_heads": 3,
        "kv_heads": 1,
        "positions": 49,
        "temporal": 3,
        "seed": 1,
    },
    "levels out of order": {"levels": (2, 0), "positions": 9, "own_video_settings": False, "seed": 2},
}
HUB_NAMES: list[tuple[str, str]] = []  # published under the names of transformers 5


def make(
    folder: Path,
    tied: bool = True,
    levels: Sequence[int] = (0, 2),
    vision_heads: int = 2,
    kv_heads: int = 2,
    positions: int = 16,
    temporal: int = 2,
    own_video_settings: bool = True,
    seed: int = 0,
) -> None:
    """A tiny checkpoint: patches of 4 pixels, so an MM token is 8 x 8."""
    hf_config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "tie_word_embeddings": tied,
        **special_ids(),
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "head_dim": 32,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 3,
            "hidden_size": 12 * vision_heads,
            "num_heads": vision_heads,
            "intermediate_size": 40,
            "hidden_act": "gelu_pytorch_tanh",
            "out_hidden_size": 64,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": temporal,
            "num_position_embeddings": positions,
            "deepstack_visual_indexes": list(levels),
        },
    }
    image = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 4 * 64, "longest_edge": 24 * 64},
    }
    video = {key: image[key] for key in ("image_mean", "image_std")}
    video["size"] = {"shortest_edge": 2 * 64, "longest_edge": 36 * 64}
    write_checkpoint(folder, hf_config, image, video if own_video_settings else None, seed)


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """The layout of transformers 4: rotary parameters apart."""
    text = dict(config["text_config"])
    rope = dict(text.pop("rope_parameters"))
    text["rope_theta"] = rope.pop("rope_theta")
    return config | {"text_config": text | {"rope_scaling": rope}}


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """What transformers makes of the messages."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    return qwen_vl_tiny.reference(folder, messages, Qwen3VLProcessor, smart_resize)
