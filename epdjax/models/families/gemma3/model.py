"""Gemma 3 (``model_type: gemma3``): a SigLIP tower, pooled to a fixed number of tokens, and the Gemma decoder.

Every picture, and every crop of one, is an encode unit of one size. References: HF ``Gemma3Model``,
``Gemma3MultiModalProjector``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import Linear, RMSNorm, normalise
from epdjax.models.model_config import TileConfig
from epdjax.models.text_config import TextConfig
from epdjax.models.vit import VisionConfig, VisionTower

# What the SigLIP image processors normalise with, unless the checkpoint's preprocessor_config.json says otherwise.
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Gemma3Config(TileConfig):
    """A Gemma 3 model: vision tower, projector and decoder, and how uint8 pixels are normalised."""

    vision: VisionConfig
    text: TextConfig
    tokens_per_image: int
    image_token_id: int
    image_mean: tuple[float, ...] = SIGLIP_MEAN
    image_std: tuple[float, ...] = SIGLIP_STD
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    mm_bidirectional = True

    @property
    def pool(self) -> int:
        """Side of the square of patches that becomes one MM token."""
        return self.vision.grid // math.isqrt(self.tokens_per_image)

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit."""
        return self.tokens_per_image

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "Gemma3Config":
        """Read config.json (and preprocessor_config.json) of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        text = {"model_type": "gemma3_text"} | dict(config.get("text_config") or {})
        if text.get("use_bidirectional_attention"):
            raise ValueError("text_config.use_bidirectional_attention is true; a decoder that generates is causal")
        vision = VisionConfig.from_hf_clip(
            {"model_type": "siglip_vision_model"} | dict(config.get("vision_config") or {})
        )
        if vision.class_token:
            raise ValueError("vision_config.model_type is 'clip_vision_model'; supported: siglip_vision_model")
        tokens = config.get("mm_tokens_per_image", 256)
        side = math.isqrt(tokens)
        if side**2 != tokens or vision.grid % side:
            raise ValueError(
                f"mm_tokens_per_image is {tokens}; it must be a square whose side divides the {vision.grid} patches "
                "along a picture"
            )
        preprocessor = preprocessor or {}
        return cls(
            vision=vision,
            text=TextConfig.from_hf(text, tie_embeddings=config.get("tie_word_embeddings", True)),
            tokens_per_image=tokens,
            image_token_id=config.get("image_token_index", config.get("image_token_id", 262144)),
            image_mean=tuple(preprocessor.get("image_mean") or SIGLIP_MEAN),
            image_std=tuple(preprocessor.get("image_std") or SIGLIP_STD),
        )


class Gemma3Projector(nnx.Module):
    """``Gemma3MultiModalProjector``: a norm and a matrix into the decoder's width."""

    def __init__(self, config: Gemma3Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d_in, d_out = config.vision.hidden_size, config.text.hidden_size
        self.norm = RMSNorm(d_in, eps=config.vision.norm_eps, dtype=dtype, offset=True)
        self.linear = Linear(d_in, d_out, axes=("vision_in", "vision_out"), bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.norm(x))


class Gemma3Encoder(nnx.Module):
    """All that an E instance holds: vision tower and projector."""

    def __init__(self, config: Gemma3Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = VisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = Gemma3Projector(config, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """``pixels``, uint8 ``[units, height, width, channels]``, to ``[units, tokens_per_image, d_model]``.

        The tokens are not scaled as the decoder scales its text embeddings.
        """
        c = self.config
        pixels = normalise(inputs["pixels"], c.image_mean, c.image_std).astype(self.tower.patch_embed.kernel.dtype)
        features_upd = self.tower(pixels, attend=attend)
        u, _, d = features_upd.shape
        side, pool = c.vision.grid // c.pool, c.pool
        pooled = features_upd.reshape(u, side, pool, side, pool, d).mean(axis=(2, 4), dtype=jnp.float32)
        return self.projector(pooled.reshape(u, side * side, d).astype(features_upd.dtype))
