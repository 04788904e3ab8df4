"""What a Qwen-VL checkpoint's config.json says of its vision tower and decoder, as transformers 4 or 5 writes it.

References: HF ``Qwen2VLConfig``, ``Qwen2_5_VLConfig``, ``Qwen3VLConfig``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from epdjax.models.families.qwen_vl.vit import QwenVisionConfig
from epdjax.models.text_config import TextConfig

# Per model_type: the kind of decoder, and what its configs may leave out.
_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_5_vl_text", {"rope_theta": 1e6, "rms_norm_eps": 1e-5}),
    "qwen2_5_vl": ("qwen2_5_vl_text", {"rope_theta": 1e6, "rms_norm_eps": 1e-5}),
    "qwen3_vl": ("qwen3_vl_text", {"rope_theta": 5e5, "rms_norm_eps": 1e-6, "head_dim": 128}),
}
_SECTIONS = {"qwen2_vl": (16, 24, 24), "qwen2_5_vl": (16, 24, 24), "qwen3_vl": (24, 20, 20)}


def read_text(config: Mapping[str, Any]) -> TextConfig:
    """The decoder: ``text_config``, or the top level of a config.json as published for transformers 4.

    Raises:
        ValueError: a field this decoder cannot honour, named.
    """
    family = config["model_type"]
    kind, defaults = _TEXT[family]
    fields = config.get("text_config") or config
    tied = config.get("tie_word_embeddings")
    if tied is None or (not tied and family != "qwen3_vl"):  # saved by transformers 4: in text_config
        tied = bool(fields.get("tie_word_embeddings"))
    text = TextConfig.from_hf(defaults | dict(fields) | {"model_type": kind}, tie_embeddings=tied)
    sections = text.rope.sections or _SECTIONS[family]
    if len(sections) != 3 or sum(sections) != text.head_dim // 2:
        raise ValueError(
            f"rope_parameters.mrope_section is {list(sections)}; it must be three numbers that add up to half of "
            f"head_dim, {text.head_dim // 2}"
        )
    # HF takes the order of the sections from the family, whatever the config says of it.
    rope = dataclasses.replace(text.rope, sections=sections, interleaved=family == "qwen3_vl")
    return dataclasses.replace(text, rope=rope)


def read_vision(config: Mapping[str, Any]) -> QwenVisionConfig:
    """The vision tower: ``vision_config``.

    Raises:
        ValueError: a field this tower cannot honour, named.
    """
    family, fields = config["model_type"], config.get("vision_config")
    if not fields:
        raise ValueError("config.json has no vision_config")
    vision = {"qwen2_vl": _qwen2, "qwen2_5_vl": _qwen2_5, "qwen3_vl": _qwen3}[family](fields)
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise ValueError(
            f"vision_config.num_heads {vision.num_heads} must divide the tower's width {vision.hidden_size} into heads "
            "whose size is a multiple of 4"
        )
    return vision


def _common(fields: Mapping[str, Any]) -> dict[str, Any]:
    channels = fields.get("in_channels", fields.get("in_chans", 3))
    if channels != 3:
        raise ValueError(f"vision_config.in_channels is {channels}; only pictures of 3 colours are supported")
    rope = fields.get("rope_parameters") or {}
    return {
        "temporal_patch_size": _whole(fields, "temporal_patch_size", 2),
        "merge_size": _whole(fields, "spatial_merge_size", 2),
        "num_heads": fields.get("num_heads", fields.get("num_attention_heads", 16)),
        "rope_theta": float(rope.get("rope_theta") or fields.get("rope_theta") or 10000.0),
    }


def _whole(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"vision_config.{name} is {value!r}; a positive whole number is supported")
    return value


def _layers(fields: Mapping[str, Any], name: str, default: tuple[int, ...], count: int) -> tuple[int, ...]:
    value = fields.get(name)
    layers = default if value is None else tuple(value)
    if any(not 0 <= layer < count for layer in layers) or len(set(layers)) != len(layers):
        raise ValueError(f"vision_config.{name} is {list(layers)}; the tower's layers are 0 to {count - 1}")
    return layers


def _qwen2(fields: Mapping[str, Any]) -> QwenVisionConfig:
    """``Qwen2VLVisionConfig``, in which ``hidden_size`` is the decoder's."""
    width = fields.get("embed_dim", 1280)
    return QwenVisionConfig(
        **_common(fields),
        patch_size=_whole(fields, "patch_size", 14),
        hidden_size=width,
        num_layers=fields.get("depth", 32),
        mlp_size=int(width * fields.get("mlp_ratio", 4)),
        hidden_act=fields.get("hidden_act", "quick_gelu"),
        out_size=fields.get("hidden_size", 3584),
        norm_type="layer_norm",
        gated_mlp=False,
        patch_bias=False,
    )


def _qwen2_5(fields: Mapping[str, Any]) -> QwenVisionConfig:
    """``Qwen2_5_VLVisionConfig``."""
    patch, merge = _whole(fields, "patch_size", 14), _whole(fields, "spatial_merge_size", 2)
    pixels = _whole(fields, "window_size", 112)
    window = pixels // merge // patch
    if window < 1:
        raise ValueError(f"vision_config.window_size {pixels} is smaller than an MM token, {merge * patch} pixels")
    depth = fields.get("depth", 32)
    return QwenVisionConfig(
        **_common(fields),
        patch_size=patch,
        hidden_size=fields.get("hidden_size", 3584),
        num_layers=depth,
        mlp_size=fields.get("intermediate_size", 3420),
        hidden_act=fields.get("hidden_act", "silu"),
        out_size=fields.get("out_hidden_size", 3584),
        norm_type="rms_norm",
        gated_mlp=True,
        patch_bias=False,
        window=window,
        full_layers=_layers(fields, "fullatt_block_indexes", (7, 15, 23, 31), depth),
    )


def _qwen3(fields: Mapping[str, Any]) -> QwenVisionConfig:
    """``Qwen3VLVisionConfig``."""
    positions = _whole(fields, "num_position_embeddings", 2304)
    if math.isqrt(positions) ** 2 != positions:
        raise ValueError(f"vision_config.num_position_embeddings is {positions}, which is no square")
    depth = fields.get("depth", 27)
    return QwenVisionConfig(
        **_common(fields),
        patch_size=_whole(fields, "patch_size", 16),
        hidden_size=fields.get("hidden_size", 1152),
        num_layers=depth,
        mlp_size=fields.get("intermediate_size", 4304),
        hidden_act=fields.get("hidden_act", "gelu_pytorch_tanh"),
        out_size=fields.get("out_hidden_size", 3584),
        norm_type="layer_norm",
        gated_mlp=False,
        patch_bias=True,
        position_side=math.isqrt(positions),
        deepstack_layers=_layers(fields, "deepstack_visual_indexes", (8, 16, 24), depth),
    )
