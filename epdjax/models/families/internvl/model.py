"""InternVL, as transformers writes it (``model_type: internvl``): InternViT, pixel shuffle, projector, Qwen2 or Qwen3.

Pictures become tiles of one size (and a thumbnail), the frames of a video one tile each; a tile is an encode unit and
always makes the same number of MM tokens. References: HF ``InternVLModel``, ``InternVLMultiModalProjector``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import LayerNorm, Linear, activation, normalise
from epdjax.models.model_config import TileConfig
from epdjax.models.text_config import TextConfig
from epdjax.models.vit import VisionConfig, VisionTower

# What the InternVL processors normalise with, unless the checkpoint's preprocessor_config.json says otherwise.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InternVLConfig(TileConfig):
    """An InternVL model: vision tower, projector and decoder, and how uint8 pixels are normalised."""

    vision: VisionConfig
    text: TextConfig
    downsample_ratio: float
    projector_act: str
    feature_layer: int
    image_token_id: int
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")

    @property
    def shuffle(self) -> int:
        """Side of the square of patches that becomes one MM token."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_unit(self) -> int:
        """MM tokens that one tile makes."""
        return (self.vision.grid // self.shuffle) ** 2

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit."""
        return self.tokens_per_unit

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "InternVLConfig":
        """Read config.json (and preprocessor_config.json) of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        feature_layer = config.get("vision_feature_layer", -1)
        if not isinstance(feature_layer, int):
            raise ValueError(f"vision_feature_layer is {feature_layer!r}; a single layer is supported")
        strategy = config.get("vision_feature_select_strategy", "default")
        if strategy != "default":
            raise ValueError(f"vision_feature_select_strategy is {strategy!r}; supported: default")
        text = config["text_config"]
        tied = config.get("tie_word_embeddings")
        vision = VisionConfig.from_hf(config.get("vision_config", {}))
        ratio = config.get("downsample_ratio", 0.5)
        if vision.grid % round(1 / ratio):
            raise ValueError(f"a tile has {vision.grid} patches a side, which downsample_ratio {ratio} does not divide")
        preprocessor = preprocessor or {}
        return cls(
            vision=vision,
            text=TextConfig.from_hf(text, tie_embeddings=True if tied is None else tied),
            downsample_ratio=ratio,
            projector_act=config.get("projector_hidden_act", "gelu"),
            feature_layer=feature_layer,
            image_token_id=config.get("image_token_id", 151667),
            image_mean=tuple(preprocessor.get("image_mean") or IMAGENET_MEAN),
            image_std=tuple(preprocessor.get("image_std") or IMAGENET_STD),
        )


def pixel_shuffle(x_uhwd: jax.Array, factor: int) -> jax.Array:
    """Fold each ``factor x factor`` square of patches into one token, row-major inside the square.

    ``[u, h, w, d] -> [u, h / factor, w / factor, factor**2 * d]`` (``InternVLModel.pixel_shuffle``).
    """
    u, h, w, d = x_uhwd.shape
    x = x_uhwd.reshape(u, h // factor, factor, w // factor, factor, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(u, h // factor, w // factor, factor * factor * d)


class Projector(nnx.Module):
    """``InternVLMultiModalProjector``: norm and a two-layer MLP into the decoder's width."""

    def __init__(self, config: InternVLConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d_in, d_out = config.vision.hidden_size * config.shuffle**2, config.text.hidden_size
        axes = ("vision_in", "vision_out")
        self.norm = LayerNorm(d_in, eps=1e-5, dtype=dtype)
        self.linear_1 = Linear(d_in, d_out, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(d_out, d_out, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.act = activation(config.projector_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(self.act(self.linear_1(self.norm(x))))


class InternVLEncoder(nnx.Module):
    """All that an E instance holds: vision tower and projector."""

    def __init__(self, config: InternVLConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = VisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Projector(config, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """``pixels``, uint8 tiles ``[units, height, width, channels]``, to MM tokens ``[units, tokens, d_model]``."""
        c = self.config
        pixels = normalise(inputs["pixels"], c.image_mean, c.image_std).astype(self.tower.patch_embed.kernel.dtype)
        features_upd = self.tower(pixels, c.feature_layer, attend)[:, 1:]
        u, _, d = features_upd.shape
        shuffled = pixel_shuffle(features_upd.reshape(u, c.vision.grid, c.vision.grid, d), c.shuffle)
        return self.projector(shuffled.reshape(u, c.tokens_per_unit, -1))
