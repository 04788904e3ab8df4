"""Qwen2.5-VL: tiny checkpoints, and transformers as their judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.models import qwen_vl_tiny
from tests.models.families.reference import Reference
from tests.models.qwen_vl_tiny import VOCAB_ROWS, conversations, qwen2_settings, special_ids, write_checkpoint
from tests.models.qwen_vl_tiny import qwen2_hub_config as hub_config

__all__ = ["HUB_NAMES", "MODEL_TYPE", "VARIANTS", "conversations", "hub_config", "make", "reference"]

MODEL_TYPE = "qwen2_5_vl"
VARIANTS: dict[str, dict[str, Any]] = {
    "tied, windows of 2 x 2": {},
    "untied, windows of 3 x 3": {
        "tied": False,
        "window": 3,
        "full_layers": (0, 2),
        "vision_heads": 3,
        "kv_heads": 1,
        "seconds": 25,
        "seed": 1,
    },
    "every layer full": {"full_layers": (0, 1, 2), "tied": False, "own_video_settings": False, "seed": 2},
}
# transformers 5 to the published names
HUB_NAMES = [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]


def make(
    folder: Path,
    tied: bool = True,
    window: int = 2,
    full_layers: Sequence[int] = (1,),
    vision_heads: int = 2,
    kv_heads: int = 2,
    seconds: int = 2,
    own_video_settings: bool = True,
    seed: int = 0,
) -> None:
    """A tiny checkpoint: patches of 4 pixels, so an MM token is 8 x 8."""
    hf_config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "tie_word_embeddings": tied,
        **special_ids(),
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 3,
            "hidden_size": 12 * vision_heads,
            "num_heads": vision_heads,
            "intermediate_size": 40,
            "hidden_act": "silu",
            "out_hidden_size": 64,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * window,
            "fullatt_block_indexes": list(full_layers),
            "tokens_per_second": seconds,
        },
    }
    write_checkpoint(folder, hf_config, *qwen2_settings(own_video_settings), seed)


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """What transformers makes of the messages."""
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    return qwen_vl_tiny.reference(folder, messages, Qwen2_5_VLProcessor)
