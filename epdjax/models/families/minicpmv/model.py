"""MiniCPM-V 2.6 (``model_type: minicpmv``): SigLIP at native aspect ratio, a resampler, and Qwen2.

A picture is looked at whole and, where it is large, in slices; each of them keeps its aspect ratio, is an encode unit,
and becomes the same number of MM tokens however many patches it has. Reference: the model code that OpenBMB publishes
with the checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import LayerNorm, Linear, normalise, param
from epdjax.models.model_config import ModelConfig
from epdjax.models.text_config import TextConfig
from epdjax.models.vit import VisionConfig, VisionLayer

HEAD_DIM = 128  # of the resampler, in every size
NORM_EPS = 1e-6  # of the resampler


@dataclasses.dataclass(frozen=True)
class Slicing:
    """How pictures are cut.

    Attributes:
        resolution: a slice has about ``resolution**2`` pixels.
        most: slices of a picture, the whole picture not counted.
        numbered: pictures are given numbers in the prompt.
    """

    resolution: int = 448
    most: int = 9
    numbered: bool = True


@dataclasses.dataclass(frozen=True)
class MiniCPMVConfig(ModelConfig):
    """A MiniCPM-V 2.6 model, and how its pictures are cut and normalised."""

    vision: VisionConfig
    text: TextConfig
    queries: int
    slicing: Slicing = Slicing()
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")

    @property
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Widths of the attention heads of tower and resampler."""
        return (self.vision.head_dim, HEAD_DIM)

    @property
    def mm_block_size(self) -> int:
        """MM tokens in a block: those of one slice."""
        return self.queries

    @property
    def most_patches(self) -> int:
        """Patches of the largest slice that is taken; only pictures thousands of times as long as wide have more."""
        return self.unit_sizes(self.queries)[-1]

    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """In patches. Whatever a picture's size, its slices have about `Slicing.resolution` squared pixels."""
        usual = (self.slicing.resolution // self.vision.patch_size) ** 2
        return usual + usual // 8, 2 * usual

    def unit_inputs(self, size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the encoder's inputs for one unit of up to `size` patches, see `MiniCPMVEncoder`."""
        values = self.vision.patch_size**2 * self.vision.num_channels
        return {
            "patches": ((size, values), np.uint8),
            "positions": ((size,), np.int32),
            "cells": ((size, 2), np.int32),
            "valid": ((size,), np.bool_),
        }

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit."""
        return self.queries

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "MiniCPMVConfig":
        """Read config.json and preprocessor_config.json of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        version = config.get("version")
        if str(version) != "2.6":
            raise ValueError(f"version is {version!r}; of the minicpmv models 2.6 is supported")
        preprocessor = preprocessor or {}
        if not preprocessor.get("slice_mode", config.get("slice_mode", True)):
            raise ValueError("slice_mode is false; set it to true (and max_slice_nums to 1 for pictures in one piece)")
        text = TextConfig.from_hf(dict(config) | {"model_type": "qwen2"})
        if text.hidden_size % HEAD_DIM:
            raise ValueError(f"hidden_size is {text.hidden_size}; the resampler needs a multiple of {HEAD_DIM}")
        vision = _vision(config.get("vision_config") or {}, config.get("drop_vision_last_layer", True))
        slices = DEFAULTS | dict(config.get("slice_config") or {}) | dict(preprocessor)
        if slices["patch_size"] != vision.patch_size:
            raise ValueError(f"pictures are cut for patches of {slices['patch_size']}, not of {vision.patch_size}")
        return cls(
            vision=vision,
            text=text,
            queries=config.get("query_num", 64),
            slicing=Slicing(
                slices["scale_resolution"],
                slices["max_slice_nums"],
                slices.get("use_image_id", config.get("use_image_id", True)),
            ),
            image_mean=tuple(float(x) for x in slices["norm_mean"]),
            image_std=tuple(float(x) for x in slices["norm_std"]),
        )


# What the image processor assumes of settings left out.
DEFAULTS: dict[str, Any] = {
    "scale_resolution": 448,
    "max_slice_nums": 9,
    "patch_size": 14,
    "norm_mean": (0.5, 0.5, 0.5),
    "norm_std": (0.5, 0.5, 0.5),
}


def _vision(config: Mapping[str, Any], drop_last_layer: bool) -> VisionConfig:
    """The tower: SigLIP's layers (HF ``SiglipVisionConfig`` for what is left out), one less if the last is dropped."""
    layers = config.get("num_hidden_layers", 12)
    return VisionConfig(
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        num_channels=config.get("num_channels", 3),
        hidden_size=config.get("hidden_size", 768),
        num_layers=layers - bool(drop_last_layer),
        num_heads=config.get("num_attention_heads", 12),
        mlp_size=config.get("intermediate_size", 3072),
        norm_type="layer_norm",
        norm_eps=config.get("layer_norm_eps", 1e-6),
        qk_norm=False,
        qkv_bias=True,
        position_embeddings=True,
        final_norm=True,
        hidden_act=config.get("hidden_act", "gelu_pytorch_tanh"),
        layer_scale_init=None,
        class_token=False,
    )


class NativeTower(nnx.Module):
    """SigLIP over patches of pictures of any size; the position of each patch is looked up in a table."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, d, values = config, config.hidden_size, config.patch_size**2 * config.num_channels
        self.patch_embed = Linear(values, d, axes=("vision_in", "vision_out"), bias=True, dtype=dtype, rngs=rngs)
        table = jax.nn.initializers.normal(0.02)(rngs.params(), (c.grid**2, d), dtype)
        self.positions = param(table, (None, None))
        self.layers = nnx.List([VisionLayer(c, dtype=dtype, rngs=rngs) for _ in range(c.num_layers)])
        self.final_norm = LayerNorm(d, eps=c.norm_eps, dtype=dtype)

    def __call__(
        self, patches_upv: jax.Array, positions_up: jax.Array, valid_up: jax.Array, attend: UnitAttend
    ) -> jax.Array:
        """Normalised patches, the rows of the table they stand for, and which of them are no padding, to features."""
        x_upd = self.patch_embed(patches_upv) + jnp.take(self.positions[...], positions_up, axis=0)
        for layer in self.layers:
            x_upd = layer(x_upd, valid_up, attend)
        return self.final_norm(x_upd)


def cell_embedding(cells: jax.Array, width: int) -> jax.Array:
    """Position embedding ``[..., width]`` of patches at (row, column) ``[..., 2]``, float32.

    The first half is the column's, the second the row's; each is all sines, then all cosines.
    """
    quarter = width // 4
    frequencies = (10000.0 ** -(np.arange(quarter) / quarter)).astype(np.float32)
    column_row = cells[..., ::-1].astype(jnp.float32)
    angles = column_row[..., None] * frequencies
    halves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return halves.reshape(*cells.shape[:-1], width)


class Resampler(nnx.Module):
    """A fixed number of learned queries attend to the patches of a unit, however many those are.

    Patches know their position as keys, not as values.
    """

    def __init__(self, width: int, d_in: int, queries: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, axes = width, ("vision_in", "vision_out")
        init = jax.nn.initializers.normal(0.02)

        def linear(d_in: int, bias: bool) -> Linear:
            return Linear(d_in, d, axes=axes, bias=bias, dtype=dtype, rngs=rngs)

        self.queries = param(init(rngs.params(), (queries, d), dtype), (None, None))
        self.kv_proj = linear(d_in, False)
        self.query_norm, self.kv_norm, self.out_norm = (LayerNorm(d, eps=NORM_EPS, dtype=dtype) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(d, True) for _ in range(4))
        self.out_proj = linear(d, False)

    def __call__(self, x_upd: jax.Array, cells_up2: jax.Array, valid_up: jax.Array, attend: UnitAttend) -> jax.Array:
        """Features of patches, their (row, column), and which are no padding, to ``[units, queries, width]``."""
        x_upd = self.kv_norm(self.kv_proj(x_upd))
        u, _, d = x_upd.shape
        keys_upd = x_upd + cell_embedding(cells_up2, d).astype(x_upd.dtype)
        q_1qd = self.q_proj(self.query_norm(self.queries[...]))[None]
        q, k, v = (
            y.reshape(*y.shape[:2], d // HEAD_DIM, HEAD_DIM)
            for y in (jnp.broadcast_to(q_1qd, (u, *q_1qd.shape[1:])), self.k_proj(keys_upd), self.v_proj(x_upd))
        )
        o_uqd = attend(q, k, v, valid_up).reshape(u, -1, d)
        return self.out_proj(self.out_norm(self.o_proj(o_uqd)))


class MiniCPMVEncoder(nnx.Module):
    """All that an E instance holds: vision tower and resampler."""

    def __init__(self, config: MiniCPMVConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = NativeTower(config.vision, dtype=dtype, rngs=rngs)
        self.resampler = Resampler(config.mm_width, config.vision.hidden_size, config.queries, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """Slices to MM tokens ``[units, queries, d_model]``.

        Args:
            inputs: ``patches``, uint8 ``[units, p, patch * patch * channels]``; ``positions``, int32 ``[units, p]``,
                rows of the tower's position table; ``cells``, int32 ``[units, p, 2]``, (row, column) in the slice;
                ``valid``, bool ``[units, p]``, False for padding.
        """
        c, valid_up = self.config, inputs["valid"]
        u, p, values = inputs["patches"].shape
        pixels = normalise(inputs["patches"].reshape(u, p, -1, c.vision.num_channels), c.image_mean, c.image_std)
        patches_upv = pixels.reshape(u, p, values).astype(self.tower.patch_embed.kernel.dtype)
        features_upd = self.tower(patches_upv, inputs["positions"], valid_up, attend)
        return self.resampler(features_upd, inputs["cells"], valid_up, attend)
