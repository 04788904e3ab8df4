"""Plain vision transformers over units of one size: InternViT, CLIP and SigLIP are the same layers with switches.

References: HF ``InternVLVisionModel``, ``CLIPVisionModel``, ``SiglipVisionModel``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import LayerNorm, Linear, RMSNorm, activation, norm, param


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes and switches of a vision tower. Lengths are in pixels.

    Attributes:
        final_norm: the tower ends in a norm, whether or not the model at hand reads what is behind it.
        layer_scale_init: of a factor on what each layer adds; None: there is none.
        class_token: a token before the patches. patch_bias: of the patch embedding. pre_norm: a norm before the layers.
        key_bias: keys have one where queries and values do.
    """

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
    layer_scale_init: float | None
    class_token: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    key_bias: bool = True

    @property
    def unit_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures it takes."""
        return (self.image_size, self.image_size, self.num_channels)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_positions(self) -> int:
        """Rows of the features of a unit: its patches, after the class token where there is one."""
        return self.grid**2 + self.class_token

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

    @classmethod
    def from_hf_clip(cls, config: Mapping[str, Any]) -> "VisionConfig":
        """Read a ``vision_config`` of type ``clip_vision_model`` or ``siglip_vision_model``.

        Raises:
            ValueError: another type, or a unit or patch that is not square.
        """
        kind = config.get("model_type")
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise ValueError(f"vision_config.model_type is {kind!r}; supported: clip_vision_model, siglip_vision_model")
        clip = kind == "clip_vision_model"
        return cls(
            image_size=_side(config, "image_size", 224),
            patch_size=_side(config, "patch_size", 32 if clip else 16),
            num_channels=config.get("num_channels", 3),
            hidden_size=config.get("hidden_size", 768),
            num_layers=config.get("num_hidden_layers", 12),
            num_heads=config.get("num_attention_heads", 12),
            mlp_size=config.get("intermediate_size", 3072),
            norm_type="layer_norm",
            norm_eps=config.get("layer_norm_eps", 1e-5 if clip else 1e-6),
            qk_norm=False,
            qkv_bias=True,
            position_embeddings=True,
            final_norm=True,
            hidden_act=config.get("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh"),
            layer_scale_init=None,
            class_token=clip,
            patch_bias=not clip,
            pre_norm=clip,
        )


def _side(config: Mapping[str, Any], field: str, default: int) -> int:
    value = config.get(field, default)
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"vision_config.{field} is {value}; only square tiles and patches are supported")
    return int(sides[0])


class LayerConfig(Protocol):
    """What a `VisionLayer` reads of a config; see `VisionConfig`."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def mlp_size(self) -> int: ...
    @property
    def norm_type(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def key_bias(self) -> bool: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_scale_init(self) -> float | None: ...


class VisionAttention(nnx.Module):
    """Every patch sees every other; q/k norms run over all heads together (``InternVLVisionAttention``)."""

    def __init__(self, config: LayerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d = config.hidden_size

        def linear(bias: bool) -> Linear:
            return Linear(d, d, axes=("vision_in", "vision_out"), bias=bias, dtype=dtype, rngs=rngs)

        biases = (config.qkv_bias, config.qkv_bias and config.key_bias, config.qkv_bias)
        self.q_proj, self.k_proj, self.v_proj = (linear(bias) for bias in biases)
        self.o_proj = linear(True)
        self.q_norm = RMSNorm(d, eps=1e-6, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(d, eps=1e-6, dtype=dtype) if config.qk_norm else None
        self.num_heads = config.num_heads

    def __call__(self, x_upd: jax.Array, valid_up: jax.Array | None, attend: UnitAttend) -> jax.Array:
        u, p, d = x_upd.shape
        q, k, v = self.q_proj(x_upd), self.k_proj(x_upd), self.v_proj(x_upd)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(u, p, self.num_heads, -1) for y in (q, k, v))
        return self.o_proj(attend(q, k, v, valid_up).reshape(u, p, d))


class VisionLayer(nnx.Module):
    """``x + scale * attention(norm(x))``, then the same with an MLP; CLIP, SigLIP and Whisper have no scale."""

    def __init__(self, config: LayerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, f, scale = config.hidden_size, config.mlp_size, config.layer_scale_init
        axes = ("vision_in", "vision_out")
        self.norm1 = norm(config.norm_type, d, eps=config.norm_eps, dtype=dtype)
        self.attention = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.scale1 = None if scale is None else param(jnp.full((d,), scale, dtype), (None,))
        self.norm2 = norm(config.norm_type, d, eps=config.norm_eps, dtype=dtype)
        self.fc1 = Linear(d, f, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(f, d, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.scale2 = None if scale is None else param(jnp.full((d,), scale, dtype), (None,))
        self.act = activation(config.hidden_act)

    def __call__(
        self, x_upd: jax.Array, valid_up: jax.Array | None = None, attend: UnitAttend = blocked_attention
    ) -> jax.Array:
        """Features to features of the same shape; `valid_up`: the patches that are not padding (None: all), which
        lies behind them."""
        attended = self.attention(self.norm1(x_upd), valid_up, attend)
        x_upd = x_upd + (attended if self.scale1 is None else self.scale1[...] * attended)
        made = self.fc2(self.act(self.fc1(self.norm2(x_upd))))
        return x_upd + (made if self.scale2 is None else self.scale2[...] * made)


class VisionTower(nnx.Module):
    """Pixels of encode units to patch features, class token first where there is one."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, d, patch_values = config, config.hidden_size, config.patch_size**2 * config.num_channels
        init = jax.nn.initializers.normal(0.02)
        self.patch_embed = Linear(
            patch_values, d, axes=("vision_in", "vision_out"), bias=c.patch_bias, dtype=dtype, rngs=rngs
        )
        self.class_token = param(init(rngs.params(), (d,), dtype), (None,)) if c.class_token else None
        self.positions = (
            param(init(rngs.params(), (c.num_positions, d), dtype), (None, None)) if c.position_embeddings else None
        )
        self.pre_norm = LayerNorm(d, eps=c.norm_eps, dtype=dtype) if c.pre_norm else None
        self.layers = nnx.List([VisionLayer(c, dtype=dtype, rngs=rngs) for _ in range(c.num_layers)])
        self.final_norm = LayerNorm(d, eps=c.norm_eps, dtype=dtype) if c.final_norm else None
        self.config = c

    def hidden_states(
        self, pixels_uhwc: jax.Array, layers: Sequence[int], attend: UnitAttend = blocked_attention
    ) -> list[jax.Array]:
        """What is between the layers, always without the final norm.

        Args:
            pixels_uhwc: ``[units, image_size, image_size, channels]``, already normalised, in the parameters' dtype.
            layers: which hidden states to return, as HF counts them: 0 what the first layer gets, -1 what the last
                one returns.
            attend: how patches attend to one another.

        Returns:
            one ``[units, num_positions, hidden]`` for each of `layers`.
        """
        c = self.config
        u, g, p = pixels_uhwc.shape[0], c.grid, c.patch_size
        # A unit that is no whole number of patches loses the rest, as a convolution without padding would.
        patches = pixels_uhwc[:, : g * p, : g * p].reshape(u, g, p, g, p, c.num_channels).transpose(0, 1, 3, 2, 4, 5)
        x_upd = self.patch_embed(patches.reshape(u, g * g, p * p * c.num_channels))
        if self.class_token is not None:
            class_u1d = jnp.broadcast_to(self.class_token[...], (u, 1, c.hidden_size))
            x_upd = jnp.concatenate([class_u1d, x_upd], axis=1)
        if self.positions is not None:
            x_upd = x_upd + self.positions[...]
        if self.pre_norm is not None:
            x_upd = self.pre_norm(x_upd)
        depths = [layer if layer >= 0 else c.num_layers + 1 + layer for layer in layers]
        states = [x_upd]
        for layer in list(self.layers)[: max(depths)]:
            states.append(layer(states[-1], None, attend))
        return [states[depth] for depth in depths]

    def __call__(
        self, pixels_uhwc: jax.Array, feature_layer: int = -1, attend: UnitAttend = blocked_attention
    ) -> jax.Array:
        """One hidden state, see `hidden_states`; -1, the last, is behind the final norm where there is one."""
        (x_upd,) = self.hidden_states(pixels_uhwc, [feature_layer], attend)
        return self.final_norm(x_upd) if self.final_norm is not None and feature_layer == -1 else x_upd
