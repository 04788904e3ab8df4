"""The demo model's sizes and its training recipe, as plain configuration."""

import dataclasses
from typing import Any

IMAGE_SIZE = 112
PATCH_SIZE = 14
MAX_TILES = 6
TOKENS_PER_TILE = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Widths and depths. The defaults make 1.8 M parameters, 7 MB in float32."""

    vision_hidden: int = 96
    vision_layers: int = 4
    vision_heads: int = 3
    text_hidden: int = 128
    text_layers: int = 6
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 384


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum: until this share of the steps, these scenes."""

    until: float
    buckets: tuple[tuple[int, float], ...]  # (encode units of a sample, weight); see data.BUCKETS
    max_things: int
    pairs: float  # share of samples about two pictures, where the bucket has both sorts
    encoder_only: bool = False  # pictures without questions, for the encoder alone


# The encoder starts alone: it learns from a tile for a seventh of what a tile costs together with its questions.
CURRICULUM = (
    Stage(until=0.16, buckets=((1, 1.0),), max_things=4, pairs=0.0, encoder_only=True),
    Stage(until=0.22, buckets=((1, 0.6), (3, 0.4)), max_things=3, pairs=0.0),
    Stage(until=0.30, buckets=((1, 0.4), (3, 0.3), (5, 0.2), (7, 0.1)), max_things=4, pairs=0.3),
    Stage(
        until=1.0,
        buckets=((1, 0.30), (3, 0.32), (5, 0.16), (7, 0.12), (10, 0.06), (14, 0.04)),
        max_things=4,
        pairs=0.55,
    ),
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. Lengths in steps unless a name says otherwise."""

    steps: int = 7000
    warmup: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    decay_share: float = 0.45
    clip_norm: float = 1.0
    batch_tokens: int = 4000
    batch_units: int = 96  # while the encoder is alone
    seed: int = 0
    aux_weight: float = 0.25
    eval_every: int = 500
    eval_batches: int = 24
    save_every: int = 250
    minutes: float | None = None
    sizes: ModelSizes = dataclasses.field(default_factory=ModelSizes)
    curriculum: tuple[Stage, ...] = CURRICULUM


def hf_config(
    sizes: ModelSizes, vocab_size: int, image_token_id: int, eos_token_id: int, pad_token_id: int
) -> dict[str, Any]:
    """The model as a Hugging Face ``config.json`` (InternVL with a Qwen3 decoder)."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": image_token_id,
        "image_seq_length": TOKENS_PER_TILE,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": "float32",
        "vision_config": {
            "model_type": "internvl_vision",
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
            "num_channels": 3,
            "hidden_size": sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "intermediate_size": 4 * sizes.vision_hidden,
            "attention_bias": True,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "layer_scale_init_value": 1.0,
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
        },
        "text_config": {
            "model_type": "qwen3",
            "vocab_size": vocab_size,
            "hidden_size": sizes.text_hidden,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "num_key_value_heads": sizes.text_kv_heads,
            "head_dim": sizes.text_hidden // sizes.text_heads,
            "intermediate_size": sizes.text_mlp,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        },
    }
