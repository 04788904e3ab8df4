"""Names of the tensors of Whisper's encoder, as ``audio_tower`` of a larger model."""

from typing import Any

import numpy as np

from epdjax.models.keymap import KeyRule, Shape, Transform, flat, linear_rules, norm_rules
from epdjax.models.whisper import TAPS


def _conv_shape(shape: Shape, config: Any) -> Shape:
    return (shape[0], shape[1] // TAPS, TAPS)


def _load_conv(x_oit: np.ndarray, shape: Shape, config: Any) -> np.ndarray:
    return x_oit.transpose(0, 2, 1).reshape(shape)


def _save_conv(x: np.ndarray, out_oit: np.ndarray, config: Any) -> None:
    d_out, d_in, taps = out_oit.shape
    out_oit[...] = x.reshape(d_out, taps, d_in).transpose(0, 2, 1)


# torch's Conv1d weight [out, in, taps] is the matrix that the tower applies to a frame and its neighbours side by side.
CONV = Transform(_conv_shape, _load_conv, _save_conv)

_LAYER, _OURS = "audio_tower.layers.{}", "tower.layers.{}"

WHISPER_TOWER = flat(
    (
        KeyRule("audio_tower.conv1.weight", "encoder", "tower.conv1.kernel", CONV),
        KeyRule("audio_tower.conv1.bias", "encoder", "tower.conv1.bias"),
        KeyRule("audio_tower.conv2.weight", "encoder", "tower.conv2.kernel", CONV),
        KeyRule("audio_tower.conv2.bias", "encoder", "tower.conv2.bias"),
        KeyRule("audio_tower.embed_positions.weight", "encoder", "tower.positions"),
    ),
    norm_rules(f"{_LAYER}.self_attn_layer_norm", "encoder", f"{_OURS}.norm1"),
    norm_rules(f"{_LAYER}.final_layer_norm", "encoder", f"{_OURS}.norm2"),
    *(linear_rules(f"{_LAYER}.self_attn.{x}_proj", "encoder", f"{_OURS}.attention.{x}_proj") for x in "qkv"),
    linear_rules(f"{_LAYER}.self_attn.out_proj", "encoder", f"{_OURS}.attention.o_proj"),
    linear_rules(f"{_LAYER}.fc1", "encoder", f"{_OURS}.fc1"),
    linear_rules(f"{_LAYER}.fc2", "encoder", f"{_OURS}.fc2"),
    norm_rules("audio_tower.layer_norm", "encoder", "tower.final_norm"),
)
