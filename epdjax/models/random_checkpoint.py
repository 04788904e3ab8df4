"""Complete InternVL checkpoints of any size with random weights, as transformers writes them.

For comparisons in which the same folder is served by this engine and loaded by transformers: what they cost does not
depend on what the weights say.
"""

import dataclasses
import itertools
import json
import string
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from epdjax.models.checkpoint import export_hf, on_device
from epdjax.models.families.internvl.model import IMAGENET_MEAN, IMAGENET_STD
from epdjax.models.random_part import random_part
from epdjax.models.registry import family_for

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class InternVLSize:
    """Dimensions of an InternVL with a Qwen2 decoder; the default has 0.2 billion parameters.

    Attributes:
        vision_layers, vision_width, vision_heads: of the tower; its MLPs are four times as wide.
        tile: pixels of a tile's side. patch: of a patch's.
        max_tiles: of a picture, without its thumbnail.
        text_layers, text_width, text_heads, kv_heads, text_mlp: of the decoder.
        vocab: tokens. positions: longest context.
    """

    vision_layers: int = 12
    vision_width: int = 384
    vision_heads: int = 6
    tile: int = 224
    patch: int = 14
    max_tiles: int = 12
    text_layers: int = 16
    text_width: int = 896
    text_heads: int = 14
    kv_heads: int = 2
    text_mlp: int = 2432
    vocab: int = 32000
    positions: int = 16384

    @property
    def tokens_per_tile(self) -> int:
        """MM tokens: four patches make one."""
        return (self.tile // self.patch // 2) ** 2


def write_random_internvl(folder: Path, size: InternVLSize, seed: int = 0, dtype: Any = "float32") -> None:
    """Write weights, configs, tokenizer, chat template and processor settings into `folder`, made if need be.

    Raises:
        ValueError: dimensions that do not fit together.
    """
    if size.vocab < 300:
        raise ValueError(f"a vocabulary of {size.vocab} does not hold all bytes and special tokens; give 300 or more")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(size.vocab)
    hf_config = _config(size, tokenizer)
    family = family_for(hf_config)
    config = family.read_config(hf_config, None)
    model = nnx.eval_shape(lambda: family.model(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    for part in family.parts:
        (state,) = random_part(family, config, part, [on_device()], dtype, seed)
        nnx.update(getattr(model, part), state)
    export_hf(model, hf_config, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, value in _settings(size, tokenizer).items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE that merges letters to pairs and pairs to fours, as many as there is room for."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    merges = [(pair[0], pair[1]) for pair in pairs] + [(first, second) for first in pairs for second in pairs]
    merges = merges[: max(0, vocab - len(pieces) - len(SPECIALS))]
    pieces += [first + second for first, second in merges]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def _config(size: InternVLSize, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 0.5,
        "image_seq_length": size.tokens_per_tile,
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": size.vocab,
            "hidden_size": size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.text_mlp,
            "max_position_embeddings": size.positions,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": 4 * size.vision_width,
            "image_size": [size.tile, size.tile],
            "patch_size": [size.patch, size.patch],
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "attention_bias": True,
            "use_mean_pooling": True,
            "layer_norm_eps": 1e-6,
        },
    }


def _settings(size: InternVLSize, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": size.positions,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
        },
        "generation_config.json": {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]},
        "processor_config.json": {"image_seq_length": size.tokens_per_tile, "processor_class": "InternVLProcessor"},
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": size.max_tiles,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": size.tile, "width": size.tile},
        },
    }
