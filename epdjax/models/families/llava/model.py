"""LLaVA (``model_type: llava``): a CLIP or SigLIP tower, a two-layer projector and a Llama-like decoder.

Every picture is one encode unit of one size. References: HF ``LlavaModel``, ``LlavaMultiModalProjector``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import Linear, activation, normalise
from epdjax.models.model_config import TileConfig
from epdjax.models.text_config import TEXT_DEFAULTS, TextConfig
from epdjax.models.vit import VisionConfig, VisionTower

# What CLIP's image processors normalise with, unless the checkpoint's preprocessor_config.json says otherwise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class LlavaConfig(TileConfig):
    """A LLaVA model: vision tower, projector and decoder, and how uint8 pixels are normalised.

    Attributes:
        feature_layers: hidden states of the tower that the projector is given side by side, as HF counts them.
        drop_first: the first row of the features, CLIP's class token, is left out (select strategy ``default``).
    """

    vision: VisionConfig
    text: TextConfig
    feature_layers: tuple[int, ...]
    drop_first: bool
    projector_act: str
    projector_bias: bool
    image_token_id: int
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    modalities: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def tower_tokens(self) -> int:
        """Features of one picture that the projector is given."""
        return self.vision.num_positions - self.drop_first

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit."""
        return self.tower_tokens

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "LlavaConfig":
        """Read config.json (and preprocessor_config.json) of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        defaults = {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "image_size": 336,
            "patch_size": 14,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        return cls(**read_llava(config, preprocessor, defaults, "llama", {"layer": -2, "strategy": "default"}, 32000))


def read_llava(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    vision_defaults: Mapping[str, Any],
    text_kind: str,
    features: Mapping[str, Any],
    image_token_id: int,
) -> dict[str, Any]:
    """The fields of a `LlavaConfig` that LLaVA and LLaVA-OneVision read alike; the other arguments are defaults.

    Raises:
        ValueError: a field that these models cannot honour, named.
    """
    vision = VisionConfig.from_hf_clip(dict(vision_defaults) | dict(config.get("vision_config") or {}))
    text = {"model_type": text_kind} | dict(config.get("text_config") or {})
    text = TEXT_DEFAULTS.get(text["model_type"], {}) | text
    tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings", False)
    layers = config.get("vision_feature_layer", features["layer"])
    layers = (layers,) if isinstance(layers, int) else tuple(layers)
    depth = vision.num_layers
    if not layers or any(not -depth - 1 <= layer <= depth for layer in layers):
        raise ValueError(f"vision_feature_layer is {layers}, but the vision tower has {depth} layers")
    strategy = config.get("vision_feature_select_strategy", features["strategy"])
    if strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy is {strategy!r}; supported: default, full")
    preprocessor = preprocessor or {}
    return {
        "vision": vision,
        "text": TextConfig.from_hf(text, tie_embeddings=bool(tied)),
        "feature_layers": layers,
        "drop_first": strategy == "default",
        "projector_act": config.get("projector_hidden_act", "gelu"),
        "projector_bias": config.get("multimodal_projector_bias", True),
        "image_token_id": config.get("image_token_index", config.get("image_token_id", image_token_id)),
        "image_mean": tuple(preprocessor.get("image_mean") or CLIP_MEAN),
        "image_std": tuple(preprocessor.get("image_std") or CLIP_STD),
    }


class LlavaProjector(nnx.Module):
    """``LlavaMultiModalProjector``: a two-layer MLP into the decoder's width."""

    def __init__(self, config: LlavaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d_in, d_out = config.vision.hidden_size * len(config.feature_layers), config.text.hidden_size
        axes, bias = ("vision_in", "vision_out"), config.projector_bias
        self.linear_1 = Linear(d_in, d_out, axes=axes, bias=bias, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(d_out, d_out, axes=axes, bias=bias, dtype=dtype, rngs=rngs)
        self.act = activation(config.projector_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(self.act(self.linear_1(x)))


class LlavaEncoder(nnx.Module):
    """All that an E instance holds: vision tower and projector."""

    def __init__(self, config: LlavaConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = VisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.projector = LlavaProjector(config, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """``pixels``, uint8 ``[units, height, width, channels]``, to MM tokens ``[units, tower_tokens, d_model]``."""
        c = self.config
        pixels = normalise(inputs["pixels"], c.image_mean, c.image_std).astype(self.tower.patch_embed.kernel.dtype)
        features_upd = jnp.concatenate(self.tower.hidden_states(pixels, c.feature_layers, attend), axis=-1)
        return self.projector(features_upd[:, 1:] if c.drop_first else features_upd)
