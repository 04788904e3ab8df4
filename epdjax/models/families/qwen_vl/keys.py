"""Names of the tensors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, as transformers 5 holds them."""

from typing import Any

import numpy as np

from epdjax.models.decoder_keys import decoder_extras, decoder_rules
from epdjax.models.keymap import (
    Extra,
    KeyMap,
    KeyRule,
    Shape,
    Transform,
    flat,
    fused_linear_rules,
    linear_rules,
    norm_rules,
)


def _conv_shape(shape: Shape, config: Any) -> Shape:
    v = config.vision
    return (shape[0], 3, v.temporal_patch_size, v.patch_size, v.patch_size)


def _load_conv(x_dctpp: np.ndarray, shape: Shape, _: Any) -> np.ndarray:
    return x_dctpp.transpose(0, 2, 3, 4, 1).reshape(shape)


def _save_conv(x: np.ndarray, out: np.ndarray, _: Any) -> None:
    d, channels, frames, rows, columns = out.shape
    out[...] = x.reshape(d, frames, rows, columns, channels).transpose(0, 4, 1, 2, 3)


# torch's Conv3d weight [d, channels, frames, rows, columns] is the matrix that the tower applies to patches flattened
# as (frames, rows, columns, channels).
PATCH_CONV = Transform(_conv_shape, _load_conv, _save_conv)

_THEIRS, _OURS = "model.visual.blocks.{}", "tower.layers.{}"

_COMMON = flat(
    (
        KeyRule("model.visual.patch_embed.proj.weight", "encoder", "tower.patch_embed.kernel", PATCH_CONV),
        KeyRule("model.visual.patch_embed.proj.bias", "encoder", "tower.patch_embed.bias"),
    ),
    norm_rules(f"{_THEIRS}.norm1", "encoder", f"{_OURS}.norm1"),
    norm_rules(f"{_THEIRS}.norm2", "encoder", f"{_OURS}.norm2"),
    fused_linear_rules(f"{_THEIRS}.attn.qkv", "encoder", [f"{_OURS}.attention.{x}_proj" for x in "qkv"]),
    linear_rules(f"{_THEIRS}.attn.proj", "encoder", f"{_OURS}.attention.o_proj"),
    decoder_rules("model.language_model", "lm_head"),
)


def _mlp(**names: str) -> tuple[KeyRule, ...]:
    return flat(
        *(linear_rules(f"{_THEIRS}.mlp.{hf}", "encoder", f"{_OURS}.mlp.{ours}") for ours, hf in names.items()),
    )


def _merger(hf: str, path: str, norm: str, fc1: str, fc2: str) -> tuple[KeyRule, ...]:
    return flat(
        norm_rules(f"{hf}.{norm}", "encoder", f"{path}.norm"),
        linear_rules(f"{hf}.{fc1}", "encoder", f"{path}.fc1"),
        linear_rules(f"{hf}.{fc2}", "encoder", f"{path}.fc2"),
    )


def _key_map(*rules: tuple[KeyRule, ...]) -> KeyMap:
    return KeyMap(
        rules=flat(_COMMON, *rules),
        # Qwen2-VL and Qwen2.5-VL as published, before the language model had a prefix of its own.
        aliases=(
            ("visual.", "model.visual."),
            ("model.layers.", "model.language_model.layers."),
            ("model.embed_tokens.", "model.language_model.embed_tokens."),
            ("model.norm.", "model.language_model.norm."),
        ),
        extras=(
            *decoder_extras("model.language_model", "lm_head"),
            Extra(r".*\.rotary_pos_emb\.inv_freq"),  # the tower's
        ),
    )


_OLD_MERGER = _merger("model.visual.merger", "tower.merger", "ln_q", "mlp.0", "mlp.2")
_LEVELS = "model.visual.deepstack_merger_list.{}", "tower.level_mergers.{}"

QWEN2_VL_KEYS = _key_map(_mlp(up_proj="fc1", down_proj="fc2"), _OLD_MERGER)
QWEN2_5_VL_KEYS = _key_map(_mlp(gate_proj="gate_proj", up_proj="up_proj", down_proj="down_proj"), _OLD_MERGER)
QWEN3_VL_KEYS = _key_map(
    (KeyRule("model.visual.pos_embed.weight", "encoder", "tower.positions"),),
    _mlp(up_proj="linear_fc1", down_proj="linear_fc2"),
    _merger("model.visual.merger", "tower.merger", "norm", "linear_fc1", "linear_fc2"),
    _merger(*_LEVELS, "norm", "linear_fc1", "linear_fc2"),
)
