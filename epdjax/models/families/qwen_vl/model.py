"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a native-resolution vision tower and a Qwen2 or Qwen3 decoder with M-RoPE.

A picture is one encode unit, and so is each group of frames of a video that shares its patches: attention never crosses
from one group to another. References: HF ``Qwen2VLModel``, ``Qwen2_5_VLModel``, ``Qwen3VLModel``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.families.qwen_vl.fields import read_text, read_vision
from epdjax.models.families.qwen_vl.vit import QwenVisionConfig, QwenVisionTower
from epdjax.models.layers import normalise
from epdjax.models.model_config import ModelConfig
from epdjax.models.text_config import TextConfig

# What the HF image processors normalise with, unless the checkpoint's settings say otherwise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

SMALLEST_UNIT = 256  # patches: smaller units are padded to this many
MAX_ASPECT = 200  # of a picture's sides, in pixels; the processors refuse more


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(ModelConfig):
    """A Qwen-VL model: vision tower and decoder, and how uint8 pixels are normalised.

    Sizes of units are in patches.

    Attributes:
        tokens_per_second: M-RoPE positions that a second of video takes; None where time is told in the prompt's text.
        unit_limit: the most MM tokens that the image processor lets a unit make; None if it was not at hand.
    """

    vision: QwenVisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    tokens_per_second: float | None = None
    unit_limit: int | None = None
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")

    @property
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Width of the tower's attention heads."""
        return (self.vision.head_dim,)

    @property
    def mm_levels(self) -> int:
        """DeepStack levels that an MM token carries besides its embedding."""
        return len(self.vision.deepstack_layers)

    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """A ladder of sizes in patches, each twice the one before.

        The last holds any grid of `max_tokens` MM tokens (or of the image processor's limit), however many slots of its
        windows stay empty.
        """
        v = self.vision
        tokens = max_tokens if self.unit_limit is None else min(max_tokens, self.unit_limit)
        largest = v.slots * _most_windows(tokens, max(v.window, 1))
        smallest = v.slots * max(SMALLEST_UNIT // v.slots, 1)
        sizes = [largest]
        rung = smallest
        while rung < largest:
            sizes.append(rung)
            rung *= 2
        return tuple(sorted(sizes))

    def unit_inputs(self, size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shapes and dtypes of the encoder's inputs for a unit of `size` patches."""
        inputs: dict[str, tuple[tuple[int, ...], Any]] = {
            "patches": ((size, self.vision.patch_values), np.uint8),
            "grid": ((size, 2), np.int32),
            "valid": ((size,), np.bool_),
        }
        if self.vision.position_side:
            inputs |= {"position_rows": ((size, 4), np.int32), "position_weights": ((size, 4), np.float32)}
        return inputs

    def unit_tokens(self, size: int) -> int:
        """Rows of MM tokens the encoder makes of `size` patches."""
        return size // self.vision.cell

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "QwenVLConfig":
        """Read config.json (and the image processor's settings) of a checkpoint folder.

        Args:
            config: ``model_type`` qwen2_vl, qwen2_5_vl or qwen3_vl; the published flat layout (the text config's fields
                at the top) or the nested one.
            preprocessor: the image processor's settings.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        text, vision = read_text(config), read_vision(config)
        if vision.out_size != text.hidden_size:
            raise ValueError(
                f"vision_config makes tokens of width {vision.out_size}, text_config.hidden_size is {text.hidden_size}"
            )
        if len(vision.deepstack_layers) > text.num_layers:
            raise ValueError("vision_config.deepstack_visual_indexes names more levels than the decoder has layers")
        newest = config["model_type"] == "qwen3_vl"
        settings = preprocessor or {}
        seconds = config["vision_config"].get("tokens_per_second", 4) if config["model_type"] == "qwen2_5_vl" else None
        return cls(
            vision=vision,
            text=text,
            image_token_id=config.get("image_token_id", 151655),
            video_token_id=config.get("video_token_id", 151656),
            tokens_per_second=seconds,
            unit_limit=_unit_limit(settings, vision),
            image_mean=tuple(settings.get("image_mean") or (HALF if newest else CLIP_MEAN)),
            image_std=tuple(settings.get("image_std") or (HALF if newest else CLIP_STD)),
        )


def pixel_limits(settings: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """(fewest, most) pixels of a resized picture, by an image or video processor's settings of any version."""
    size = settings.get("size") or {}
    fewest = settings.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or default[0]
    most = settings.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or default[1]
    return int(fewest), int(most)


def _unit_limit(settings: Mapping[str, Any], vision: QwenVisionConfig) -> int | None:
    """The most MM tokens that ``smart_resize`` makes of a picture: its bounds give way to thin pictures."""
    if not settings:
        return None
    side = vision.patch_size * vision.merge_size
    fewest, most = (pixels / side**2 for pixels in pixel_limits(settings, (56 * 56, 28 * 28 * 1280)))
    thin = math.sqrt(MAX_ASPECT * most)  # one row, which cannot become thinner
    enlarged = fewest + 1 + math.sqrt(fewest) * (math.sqrt(MAX_ASPECT) + 1)  # both sides rounded up
    return math.floor(max(most, thin, enlarged))


def _most_windows(tokens: int, side: int) -> int:
    """The most windows of `side` x `side` tokens that a grid of at most `tokens` covers."""
    most = 1
    for rows in range(1, math.isqrt(max(tokens, 1)) + 1):
        # Twice the aspect: a side of 1.9 tokens becomes one row.
        columns = min(tokens // rows, 2 * MAX_ASPECT * rows)
        most = max(most, -(-rows // side) * -(-columns // side))
    return most


class QwenVLEncoder(nnx.Module):
    """All that an E instance holds: the vision tower with its mergers."""

    def __init__(self, config: QwenVLConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = QwenVisionTower(config.vision, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """Patches of units to MM tokens ``[units, patches / merge_size**2, mm_width]``.

        Args:
            inputs: with a leading unit axis: ``patches`` uint8 ``[u, p, frames * rows * columns * colours]``, merge
                square after merge square (Qwen2.5-VL: window after window, with empty slots); ``grid`` int32
                ``[u, p, 2]``, row and column of each; ``valid`` bool ``[u, p]``; Qwen3-VL: ``position_rows`` int32
                and ``position_weights`` float32 ``[u, p, 4]``.
        """
        c = self.config
        patches = inputs["patches"]
        pixels = normalise(patches.reshape(*patches.shape[:-1], -1, 3), c.image_mean, c.image_std)
        taps = (inputs["position_rows"], inputs["position_weights"]) if c.vision.position_side else None
        x_upv = pixels.reshape(patches.shape).astype(self.tower.patch_embed.kernel.dtype)
        return self.tower(x_upv, inputs["grid"], inputs["valid"], taps, attend)
