"""Tiny random InternVL checkpoints, complete folders as transformers writes them, made without torch.

The weights are large enough that greedy answers vary and depend on the picture.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from epdjax.models import export_hf
from epdjax.models.lmm import LMM
from epdjax.models.registry import family_for

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "t"), ("Ġ", "a"), ("Ġ", "the"), ("e", "r"), ("o", "n"))
VOCAB_ROWS = 304  # more than there are tokens, as in real checkpoints
TILE, PATCH = 28, 7

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer(specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """A byte-level BPE tokenizer with a handful of merges and a family's special tokens (default: InternVL's)."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def write_processor_files(folder: Path, max_patches: int = 6, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Tokenizer, templates and image processor settings of a tiny checkpoint."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    }
    _write(folder / "tokenizer_config.json", tokenizer_config)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    _write(folder / "generation_config.json", {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]})
    _write(folder / "processor_config.json", {"image_seq_length": 4, "processor_class": "InternVLProcessor"})
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,  # as on the hub: the processor tiles all the same
        "min_patches": 1,
        "max_patches": max_patches,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": TILE, "width": TILE},
    }
    _write(folder / "preprocessor_config.json", preprocessor)


def tiny_hf_config(
    text: str = "qwen3",
    tied: bool = True,
    qk_norm: bool = False,
    norm: str = "layer_norm",
    num_kv_heads: int = 2,
    num_heads: int = 4,
    num_layers: int = 2,
    feature_layer: int = -1,
    final_norm: bool = False,
    attention_bias: bool = False,
    max_position_embeddings: int = 4096,
    rope_factor: float = 1.0,
) -> dict[str, Any]:
    """``config.json`` of a tiny checkpoint."""
    tokenizer = tiny_tokenizer()
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 0.5,
        "image_seq_length": (TILE // PATCH // 2) ** 2,
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": text,
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            # Qwen3 states it, and then heads need not add up to the model's width
            **({"head_dim": 32} if text == "qwen3" else {}),
            "intermediate_size": 96,
            "max_position_embeddings": max_position_embeddings,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            **({"rope_scaling": {"rope_type": "linear", "factor": rope_factor}} if rope_factor != 1 else {}),
            "hidden_act": "silu",
            "tie_word_embeddings": tied,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": [TILE, TILE],
            "patch_size": [PATCH, PATCH],
            "use_qk_norm": qk_norm,
            "norm_type": norm,
            "attention_bias": attention_bias,
            "use_mean_pooling": not final_norm,
            "layer_norm_eps": 1e-6,
        },
    }


def tiny_model(
    hf_config: dict[str, Any], seed: int = 0, dtype: Any = jnp.float32, preprocessor: dict[str, Any] | None = None
) -> LMM:
    """A model of any family with random weights that make its answers interesting."""
    family = family_for(hf_config)
    config = family.read_config(hf_config, preprocessor)
    model = nnx.eval_shape(lambda: family.model(config, dtype=dtype, rngs=nnx.Rngs(0)))
    offset = config.text.norm_offset  # Gemma's norms scale by one more than their weights
    rng = np.random.default_rng(seed)
    state = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape, leaf = variable.shape, path[-1]
        noise = rng.standard_normal(shape)
        if leaf == "kernel":
            # drawn as [in, out]: goldens and expected answers are those of weights drawn so
            value = noise.reshape(shape[::-1]).T * (1.5 / shape[1] ** 0.5)
        elif leaf == "embedding":
            value = (
                noise * 0.3 / config.text.embed_scale
            )  # small beside what the layers add, or a tied model just repeats its input
        elif leaf == "scale" and path[-2] == "norm" and len(path) == 3:
            value = 3 - offset + noise * 0.3  # the decoder's last norm: spreads the logits
        elif leaf in ("scale", "scale1", "scale2"):
            value = 1 - (offset and path[0] == "language_model") + noise * 0.2
        elif leaf in ("class_token", "positions"):
            value = noise * 0.5
        else:
            value = noise * 0.2
        state[path] = variable.replace(jnp.asarray(value, dtype))
    nnx.update(model, nnx.from_flat_state(state))
    return model


def random_checkpoint(
    folder: Path,
    hf_config: dict[str, Any],
    seed: int = 0,
    dtype: Any = "float32",
    max_shard_bytes: int = 10**9,
    preprocessor: dict[str, Any] | None = None,
) -> None:
    """``config.json`` and random weights of any family, made without torch and always the same."""
    with jax.default_device(jax.devices("cpu")[0]):
        model = tiny_model(hf_config, seed, preprocessor=preprocessor)
        export_hf(model, hf_config, folder, dtype, max_shard_bytes)


def make_tiny_checkpoint(
    folder: str | Path,
    text: str = "qwen3",
    tied: bool = True,
    qk_norm: bool = False,
    norm: str = "layer_norm",
    seed: int = 0,
    num_kv_heads: int = 2,
    *,
    dtype: Any = "float32",
    max_patches: int = 6,
    max_shard_bytes: int = 10**9,
    chat_template: str | None = CHAT_TEMPLATE,
    **more: Any,
) -> Path:
    """Write a complete tiny checkpoint into `folder` and return it; `more` goes to `tiny_hf_config`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hf_config = tiny_hf_config(text, tied, qk_norm, norm, num_kv_heads, **more)
    random_checkpoint(folder, hf_config, seed, dtype, max_shard_bytes)
    write_processor_files(folder, max_patches, chat_template)
    return folder


def write_files(folder: Path, files: dict[str, Any], chat_template: str | None = None) -> None:
    """JSON files of a checkpoint, by name, and its chat template."""
    for name, value in files.items():
        _write(folder / name, value)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
