"""InternViT: a plain vision transformer with layer scale and optional q/k norms.

Reference: HF ``InternVLVisionModel``. It runs on encode units of one size, the tiles of a picture.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import dense_attention
from epdjax.models.layers import Linear, RMSNorm, activation, norm, param


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes and switches of an InternViT. Lengths are in pixels."""

    image_size: int
    patch_size: int
    num_channels: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    norm_type: str
    norm_eps: float
    qk_norm: bool
    qkv_bias: bool
    position_embeddings: bool
    final_norm: bool
    hidden_act: str
    layer_scale_init: float

    @property
    def grid(self) -> int:
        """Patches along one side of a unit."""
        return self.image_size // self.patch_size

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "VisionConfig":
        """Read the ``vision_config`` of an ``internvl`` checkpoint.

        Raises:
            ValueError: the tile or the patch is not square, or the tile is not a whole number of patches.
        """
        image, patch = _side(config, "image_size", 448), _side(config, "patch_size", 14)
        if image % patch:
            raise ValueError(f"vision_config.image_size {image} is not a multiple of patch_size {patch}")
        return cls(
            image_size=image,
            patch_size=patch,
            num_channels=config.get("num_channels", 3),
            hidden_size=config.get("hidden_size", 1024),
            num_layers=config.get("num_hidden_layers", 24),
            num_heads=config.get("num_attention_heads", 16),
            mlp_size=config.get("intermediate_size", 4096),
            norm_type=config.get("norm_type", "layer_norm"),
            norm_eps=config.get("layer_norm_eps", 1e-6),
            qk_norm=config.get("use_qk_norm", False),
            qkv_bias=config.get("attention_bias", False),
            position_embeddings=config.get("use_absolute_position_embeddings", True),
            final_norm=not config.get("use_mean_pooling", True),
            hidden_act=config.get("hidden_act", "gelu"),
            layer_scale_init=config.get("layer_scale_init_value", 0.1),
        )


def _side(config: Mapping[str, Any], field: str, default: int) -> int:
    value = config.get(field, default)
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"vision_config.{field} is {value}; only square tiles and patches are supported")
    return int(sides[0])


class VisionAttention(nnx.Module):
    """``InternVLVisionAttention``; q/k norms run over all heads together."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d = config.hidden_size

        def linear(bias: bool) -> Linear:
            return Linear(d, d, axes=("vision_in", "vision_out"), bias=bias, dtype=dtype, rngs=rngs)

        self.q_proj, self.k_proj, self.v_proj = (linear(config.qkv_bias) for _ in range(3))
        self.o_proj = linear(True)
        self.q_norm = RMSNorm(d, eps=1e-6, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(d, eps=1e-6, dtype=dtype) if config.qk_norm else None
        self.num_heads = config.num_heads

    def __call__(self, x_upd: jax.Array) -> jax.Array:
        u, p, d = x_upd.shape
        q, k, v = self.q_proj(x_upd), self.k_proj(x_upd), self.v_proj(x_upd)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(u, p, self.num_heads, -1) for y in (q, k, v))
        return self.o_proj(dense_attention(q, k, v).reshape(u, p, d))


class VisionLayer(nnx.Module):
    """``x + scale * attention(norm(x))``, then the same with an MLP."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.mlp_size
        axes = ("vision_in", "vision_out")
        self.norm1 = norm(config.norm_type, d, eps=config.norm_eps, dtype=dtype)
        self.attention = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.scale1 = param(jnp.full((d,), config.layer_scale_init, dtype), (None,))
        self.norm2 = norm(config.norm_type, d, eps=config.norm_eps, dtype=dtype)
        self.fc1 = Linear(d, f, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(f, d, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.scale2 = param(jnp.full((d,), config.layer_scale_init, dtype), (None,))
        self.act = activation(config.hidden_act)

    def __call__(self, x_upd: jax.Array) -> jax.Array:
        x_upd = x_upd + self.scale1[...] * self.attention(self.norm1(x_upd))
        return x_upd + self.scale2[...] * self.fc2(self.act(self.fc1(self.norm2(x_upd))))


class VisionTower(nnx.Module):
    """Pixels of encode units to patch features, class token first."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, patch_values = config.hidden_size, config.patch_size**2 * config.num_channels
        init = jax.nn.initializers.normal(0.02)
        self.patch_embed = Linear(patch_values, d, axes=("vision_in", "vision_out"), bias=True, dtype=dtype, rngs=rngs)
        self.class_token = param(init(rngs.params(), (d,), dtype), (None,))
        self.positions = (
            param(init(rngs.params(), (config.grid**2 + 1, d), dtype), (None, None))
            if config.position_embeddings
            else None
        )
        self.layers = nnx.List([VisionLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = norm("layer_norm", d, eps=config.norm_eps, dtype=dtype) if config.final_norm else None
        self.config = config

    def __call__(self, pixels_uhwc: jax.Array, feature_layer: int = -1) -> jax.Array:
        """Normalised pixels to features.

        Args:
            pixels_uhwc: ``[units, image_size, image_size, channels]``, already normalised, in the parameters' dtype.
            feature_layer: which hidden state to return, as HF counts them: -1 the last (with the final norm, where
                there is one), 0 the embeddings.

        Returns:
            ``[units, 1 + grid**2, hidden]``.
        """
        c = self.config
        u, g, p = pixels_uhwc.shape[0], c.grid, c.patch_size
        patches = pixels_uhwc.reshape(u, g, p, g, p, c.num_channels).transpose(0, 1, 3, 2, 4, 5)
        x_upd = self.patch_embed(patches.reshape(u, g * g, p * p * c.num_channels))
        class_u1d = jnp.broadcast_to(self.class_token[...], (u, 1, c.hidden_size))
        x_upd = jnp.concatenate([class_u1d, x_upd], axis=1)
        if self.positions is not None:
            x_upd = x_upd + self.positions[...]
        depth = feature_layer if feature_layer >= 0 else c.num_layers + 1 + feature_layer
        for layer in list(self.layers)[:depth]:
            x_upd = layer(x_upd)
        return self.final_norm(x_upd) if self.final_norm is not None and feature_layer == -1 else x_upd
