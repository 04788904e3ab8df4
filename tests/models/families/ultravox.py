"""Tiny Ultravox checkpoints, their encoder and language model merged in."""

import json
from pathlib import Path
from typing import Any

from tests.models.judge import clip, user
from tests.models.tiny import VOCAB_ROWS, random_checkpoint, tiny_tokenizer

MODEL_TYPE = "ultravox"
SPECIALS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
VARIANTS: dict[str, dict[str, Any]] = {
    "later, a norm in the middle": {},
    "later, odd sizes": {
        "norm_mid": False,
        "stack": 5,
        "projector": 50,
        "positions": 75,
        "text": "qwen2",
        "tied": True,
    },
    "v0.3": {"norm_mid": None, "num_kv_heads": 1},
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def hf_config(
    norm_mid: bool | None = True,
    stack: int = 8,
    projector: int = 48,
    positions: int = 100,
    text: str = "llama",
    tied: bool = False,
    num_kv_heads: int = 2,
) -> dict[str, Any]:
    """``config.json``; `norm_mid` None: as v0.3 writes it."""
    return {
        "architectures": ["UltravoxModel"],
        "model_type": MODEL_TYPE,
        "audio_model_id": None,
        "text_model_id": None,
        "hidden_size": projector,
        "stack_factor": stack,
        "projector_act": "swiglu",
        **({} if norm_mid is None else {"projector_ln_mid": norm_mid}),
        "audio_config": {
            "model_type": "whisper",
            "num_mel_bins": 20,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 40,
            "d_model": 24,
            "max_source_positions": positions,
        },
        "text_config": {
            "model_type": text,
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": tied,
        },
    }


def write_processor_files(folder: Path) -> None:
    """Tokenizer and template; published folders have no settings of the feature extractor."""
    tiny_tokenizer(SPECIALS).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def make(folder: Path, **variant: Any) -> None:
    """A complete checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint(folder, hf_config(**variant), seed=4)
    write_processor_files(folder)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Of every kind that the family takes; all clips are short enough for v0.3."""
    short, odd = clip(1, 4321), clip(2, 13007)
    return {
        "text": user("What is a sound?"),
        "clip": user(odd, "What is in it?"),
        "two clips": user("First:", odd, "Second:", short, "Compare."),
        "clip twice": user(short, short, "The same?"),
        "clip alone": user(clip(3, 1000)),
    }
