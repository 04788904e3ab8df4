"""Tiny checkpoints of InternVL2 in the layout of its authors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing

from epdjax.models.media import Video
from tests.models.judge import picture, user
from tests.models.tiny import PATCH, TILE, VOCAB_ROWS, random_checkpoint, tiny_tokenizer

MODEL_TYPE = "internvl_chat"
VARIANTS: dict[str, dict[str, Any]] = {
    "internlm2": {"kind": "internlm2", "num_heads": 6, "num_kv_heads": 2},
    "internlm2 behind the larger tower": {"kind": "internlm2", "num_kv_heads": 1, "bias": True, "large": True},
    "qwen2": {"kind": "qwen2", "template": "Hermes-2", "thumbnail": False},
    "llama": {"kind": "llama", "num_kv_heads": 4, "template": "internvl2_5", "select_layer": -2},
}
SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def write_tokenizer(folder: Path, bos: bool) -> None:
    """A tokenizer as these checkpoints have it; `bos`: it puts ``<s>`` in front, as InternLM2's does."""
    tokenizer = tiny_tokenizer(SPECIALS)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "InternLM2Tokenizer" if bos else "PreTrainedTokenizerFast",
        **({"auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}} if bos else {}),
        **({"bos_token": "<s>"} if bos else {}),
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def hf_config(
    kind: str = "internlm2",
    num_heads: int = 4,
    num_kv_heads: int = 2,
    bias: bool = False,
    large: bool = False,
    template: str = "internlm2-chat",
    thumbnail: bool = True,
    select_layer: int = -1,
) -> dict[str, Any]:
    """``config.json``; `large`: a tower as that of InternVL2-26B."""
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": MODEL_TYPE,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": select_layer,
        "template": template,
        "use_thumbnail": thumbnail,
        "llm_config": {
            "model_type": kind,
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 16 * num_heads,
            "num_hidden_layers": 2,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0} if kind == "internlm2" else None,
            "hidden_act": "silu",
            "attention_bias" if kind == "llama" else "bias": bias,
        },
        "vision_config": {
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": TILE,
            "intermediate_size": 64,
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "rms_norm" if large else "layer_norm",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "qk_normalization": large,
            "qkv_bias": not large,
        },
    }


def make(folder: Path, **variant: Any) -> None:
    """Write a complete checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = hf_config(**variant)
    random_checkpoint(folder, made, seed=5)
    write_tokenizer(folder, bos=made["llm_config"]["model_type"] == "internlm2")


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Of every kind that the family takes."""
    wide, tall = picture(1, 70, 30), picture(2, 20, 60)
    frames = np.random.default_rng(3).integers(0, 256, (3, 24, 40, 3), np.uint8)
    return {
        "text": user("What is a tile?"),
        "one picture": user(wide, "What is in it?"),
        "two pictures": user("First: ", wide, "Second: ", tall, "Compare."),
        "picture twice": user(tall, tall, "The same?"),
        "video": user(Video(frames, np.arange(3) / 2, 2.0), "What happens?"),
    }
