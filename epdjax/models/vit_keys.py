"""Names of CLIP and SigLIP towers and of the models around them, as transformers 5 writes them."""

from typing import Any

import numpy as np

from epdjax.models.decoder_keys import decoder_extras, decoder_rules
from epdjax.models.keymap import Extra, KeyMap, KeyRule, Shape, Transform, flat, linear_rules, norm_rules


def _conv_shape(shape: Shape, config: Any) -> Shape:
    vision = config.vision
    return (shape[0], vision.num_channels, vision.patch_size, vision.patch_size)


def _load_conv(x_dcpp: np.ndarray, shape: Shape, config: Any) -> np.ndarray:
    return x_dcpp.transpose(0, 2, 3, 1).reshape(shape)


def _save_conv(x: np.ndarray, out: np.ndarray, config: Any) -> None:
    d, channels, rows, cols = out.shape
    out[...] = x.reshape(d, rows, cols, channels).transpose(0, 3, 1, 2)


# torch's Conv2d weight [d, channels, rows, cols] is the matrix that the vision tower applies to patches flattened as
# (rows, cols, channels).
PATCH_CONV = Transform(_conv_shape, _load_conv, _save_conv)


def layer_rules(hf: str) -> tuple[KeyRule, ...]:
    """A layer of CLIP or SigLIP, `hf` with ``{}`` for its number."""
    ours = "tower.layers.{}"
    return flat(
        norm_rules(f"{hf}.layer_norm1", "encoder", f"{ours}.norm1"),
        norm_rules(f"{hf}.layer_norm2", "encoder", f"{ours}.norm2"),
        *(linear_rules(f"{hf}.self_attn.{x}_proj", "encoder", f"{ours}.attention.{x}_proj") for x in "qkv"),
        linear_rules(f"{hf}.self_attn.out_proj", "encoder", f"{ours}.attention.o_proj"),
        linear_rules(f"{hf}.mlp.fc1", "encoder", f"{ours}.fc1"),
        linear_rules(f"{hf}.mlp.fc2", "encoder", f"{ours}.fc2"),
    )


_TOWER = "vision_tower"

TOWER = flat(
    (
        KeyRule(f"{_TOWER}.embeddings.class_embedding", "encoder", "tower.class_token"),
        KeyRule(f"{_TOWER}.embeddings.position_embedding.weight", "encoder", "tower.positions"),
        KeyRule(f"{_TOWER}.embeddings.patch_embedding.weight", "encoder", "tower.patch_embed.kernel", PATCH_CONV),
        KeyRule(f"{_TOWER}.embeddings.patch_embedding.bias", "encoder", "tower.patch_embed.bias"),
    ),
    norm_rules(f"{_TOWER}.pre_layrnorm", "encoder", "tower.pre_norm"),  # spelt so in every checkpoint
    layer_rules(f"{_TOWER}.encoder.layers.{{}}"),
    norm_rules(f"{_TOWER}.post_layernorm", "encoder", "tower.final_norm"),
)


def tower_keys(*projector: KeyRule, sandwich: bool = False) -> KeyMap:
    """The map of a model with a CLIP or SigLIP tower.

    Args:
        projector: rules of what else its encoder holds.
        sandwich: the decoder is Gemma's, see `decoder_rules`.
    """
    return KeyMap(
        rules=(
            *TOWER,
            *projector,
            *decoder_rules("language_model.model", "language_model.lm_head", sandwich=sandwich),
        ),
        # Published checkpoints name the tower's parts as transformers 4 does; in memory, 5 puts "model." before all.
        aliases=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.vision_model.", f"{_TOWER}."),
            ("model.vision_tower.", f"{_TOWER}."),
            ("vision_tower.vision_model.", f"{_TOWER}."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.image_newline", "image_newline"),
        ),
        extras=(
            *decoder_extras("language_model.model", "language_model.lm_head"),
            Extra(r"vision_tower\.head\..*"),  # SigLIP's pooling head, which no LMM reads
            Extra(r"vision_tower\.embeddings\.position_ids"),  # buffers that old versions saved
        ),
    )


LLAVA_PROJECTOR = flat(
    linear_rules("multi_modal_projector.linear_1", "encoder", "projector.linear_1"),
    linear_rules("multi_modal_projector.linear_2", "encoder", "projector.linear_2"),
)
