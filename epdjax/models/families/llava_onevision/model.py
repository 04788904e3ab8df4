"""LLaVA-OneVision (``model_type: llava_onevision``): a SigLIP tower over tiles of a picture, or over a video's frames.

A tile is an encode unit. What the reference does to the features of several tiles (putting them side by side, cutting
the padding off, shrinking, a newline after each row, pooling of frames) mixes few of them at a time, linearly: so it is
written down on the host as a `media.Mix`, and tiles stay independent. For the newlines each unit makes one token more.

Reference: HF ``LlavaOnevisionModel`` of transformers 5, which reads the tower before its last norm.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.families.llava.model import LlavaConfig, LlavaEncoder, read_llava
from epdjax.models.layers import param

_STEPS = tuple(384 * i for i in range(1, 7))


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionConfig(LlavaConfig):
    """A LLaVA-OneVision model.

    Attributes:
        grid_pinpoints: (height, width) that a picture may be enlarged to, in pixels.
        max_tiles: a picture keeps about as many tokens as this many tiles make.
        video_token_id: stands for frames in a prompt, as `image_token_id` for pictures.
    """

    grid_pinpoints: tuple[tuple[int, int], ...] = ()
    max_tiles: int = 9
    video_token_id: int = 151647
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    mm_taps = 4

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a tile: its patches, and a newline."""
        return self.tower_tokens + 1

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
    ) -> "LlavaOnevisionConfig":
        """Read config.json (and preprocessor_config.json) of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        defaults = {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "image_size": 384,
            "patch_size": 14,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
        }
        fields = read_llava(config, preprocessor, defaults, "qwen2", {"layer": -1, "strategy": "full"}, 151646)
        vision = fields["vision"]
        if vision.num_positions - fields["drop_first"] != vision.grid**2:
            raise ValueError(
                "vision_feature_select_strategy must leave one feature for each patch: 'full' for a SigLIP tower, "
                "'default' for CLIP"
            )
        ratio = config.get("vision_aspect_ratio", "anyres_max_9")
        if (limit := re.fullmatch(r"anyres_max_(\d+)", ratio)) is None or limit[1] == "0":
            raise ValueError(f"vision_aspect_ratio is {ratio!r}; supported: anyres_max_ and a number of tiles")
        pinpoints = config.get("image_grid_pinpoints") or [(h, w) for h in _STEPS for w in _STEPS]
        if any(side % vision.image_size for point in pinpoints for side in point):
            raise ValueError(f"image_grid_pinpoints must be multiples of vision_config.image_size {vision.image_size}")
        return cls(
            **fields,
            grid_pinpoints=tuple((h, w) for h, w in pinpoints),
            max_tiles=int(limit[1]),
            video_token_id=config.get("video_token_index", config.get("video_token_id", 151647)),
        )


class LlavaOnevisionEncoder(LlavaEncoder):
    """Vision tower, projector and the learned newline."""

    def __init__(self, config: LlavaOnevisionConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        newline = jax.nn.initializers.normal(config.text.hidden_size**-0.5)
        self.newline = param(newline(rngs.params(), (config.text.hidden_size,), dtype), (None,))

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """``pixels``, uint8 ``[units, height, width, channels]``, to ``[units, tower_tokens + 1, d_model]``."""
        x_utd = super().__call__(inputs, attend)
        newline_u1d = jnp.broadcast_to(self.newline[...], (len(x_utd), 1, x_utd.shape[-1]))
        return jnp.concatenate([x_utd, newline_u1d], axis=1)
