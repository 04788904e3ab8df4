"""Tiny checkpoints of MiniCPM-V 2.6 as they are published."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from epdjax.models.media import Video
from tests.models.judge import picture, user
from tests.models.tiny import VOCAB_ROWS, random_checkpoint, tiny_tokenizer

MODEL_TYPE = "minicpmv"
RESOLUTION, PATCH = 56, 7
VARIANTS: dict[str, dict[str, Any]] = {
    "one head in the resampler": {"num_kv_heads": 2},
    "two heads, last layer dropped": {"hidden_size": 256, "num_heads": 8, "drop_last_layer": True, "queries": 5},
    "few slices, not numbered": {"num_kv_heads": 1, "num_heads": 2, "most": 2, "numbered": False, "table": 5},
}
SPECIALS = (
    "<unk>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "<image_id>",
    "</image_id>",
)


def write_processor_files(folder: Path, **settings: Any) -> None:
    """Tokenizer and picture settings; `settings` go into the latter."""
    tiny_tokenizer(SPECIALS).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "MiniCPMVTokenizerFast",
        "auto_map": {"AutoTokenizer": ["tokenization_minicpmv_fast.MiniCPMVTokenizerFast", None]},
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    preprocessor = {
        "image_processor_type": "MiniCPMVImageProcessor",
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "patch_size": 14,
        "use_image_id": True,
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
        "version": 2.6,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor | settings))


def hf_config(
    hidden_size: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    queries: int = 4,
    table: int = 7,
    drop_last_layer: bool = False,
) -> dict[str, Any]:
    """``config.json``; `table`: side of the position table."""
    return {
        "architectures": ["MiniCPMV"],
        "model_type": MODEL_TYPE,
        "version": 2.6,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "num_attention_heads": num_heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": VOCAB_ROWS,
        "drop_vision_last_layer": drop_last_layer,
        "query_num": queries,
        "slice_config": {"max_slice_nums": 9, "patch_size": PATCH, "model_type": MODEL_TYPE},
        "vision_config": {
            "hidden_size": 32,
            "image_size": table * PATCH,
            "intermediate_size": 64,
            "model_type": "siglip",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
        },
    }


def make(folder: Path, most: int = 4, numbered: bool = True, **variant: Any) -> None:
    """Write a complete checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint(folder, hf_config(**variant), seed=7)
    write_processor_files(
        folder, scale_resolution=RESOLUTION, patch_size=PATCH, max_slice_nums=most, use_image_id=numbered
    )


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Of every kind that the family takes."""
    wide, small = picture(1, 150, 60), picture(2, 20, 33)
    frames = np.random.default_rng(3).integers(0, 256, (3, 40, 80, 3), np.uint8)
    return {
        "text": user("What is a slice?"),
        "one picture": user(wide, "What is in it?"),
        "two pictures": user("First:", wide, "Second:", small, "Compare."),
        "picture twice": user(small, small, "The same?"),
        "video": user(Video(frames, np.arange(3) / 1.0, 1.0), "What happens?"),
    }
