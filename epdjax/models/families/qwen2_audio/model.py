"""Qwen2-Audio (``model_type: qwen2_audio``): Whisper's encoder, pooled by two, and the Qwen2 decoder.

A clip is one encode unit. References: HF ``Qwen2AudioModel``, ``Qwen2AudioEncoder``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import Linear
from epdjax.models.model_config import ModelConfig
from epdjax.models.text_config import TEXT_DEFAULTS, TextConfig
from epdjax.models.whisper import WhisperConfig, WhisperTower

# What published configs leave out (HF ``Qwen2AudioEncoderConfig``).
AUDIO_DEFAULTS: dict[str, Any] = {
    "model_type": "qwen2_audio_encoder",
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "activation_function": "gelu",
    "max_source_positions": 1500,
}


@dataclasses.dataclass(frozen=True)
class Qwen2AudioConfig(ModelConfig):
    """A Qwen2-Audio model: audio tower, projector and decoder."""

    audio: WhisperConfig
    text: TextConfig
    audio_token_id: int

    modalities: ClassVar[tuple[str, ...]] = ("audio",)

    @property
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Width of the tower's attention heads."""
        return (self.audio.head_dim,)

    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """Declared numbers of log-mel frames, the last enough for a clip of `max_tokens` MM tokens."""
        return self.audio.frame_sizes(4 * max_tokens + 4)

    def unit_inputs(self, size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the encoder's inputs for one unit of `size` frames."""
        return {
            "mel": ((size, self.audio.mel_bins), np.float32),
            "valid": ((size // 2,), np.bool_),
        }

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit of `size` frames."""
        return size // 4

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "Qwen2AudioConfig":
        """Read config.json of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        audio = AUDIO_DEFAULTS | dict(config.get("audio_config") or {})
        if (kind := audio["model_type"]) != "qwen2_audio_encoder":
            raise ValueError(f"audio_config.model_type is {kind!r}; supported: qwen2_audio_encoder")
        text = {"model_type": "qwen2"} | dict(config.get("text_config") or {})
        if text["model_type"] != "qwen2":
            raise ValueError(f"text_config.model_type is {text['model_type']!r}; supported: qwen2")
        return cls(
            audio=WhisperConfig.from_hf(audio),
            # The head is a tensor of its own, whatever the config says: transformers never ties it here.
            text=TextConfig.from_hf(TEXT_DEFAULTS["qwen2"] | text, tie_embeddings=False),
            audio_token_id=config.get("audio_token_index", config.get("audio_token_id", 151646)),
        )


class Qwen2AudioEncoder(nnx.Module):
    """All that an E instance holds: audio tower and projector."""

    def __init__(self, config: Qwen2AudioConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = WhisperTower(config.audio, dtype=dtype, rngs=rngs)
        self.projector = Linear(
            config.audio.hidden_size,
            config.text.hidden_size,
            axes=("vision_in", "vision_out"),
            bias=True,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """Log-mel frames to MM tokens.

        Args:
            inputs: ``mel``, float32 ``[units, frames, mel_bins]``, with the two frames of silence behind the clip that
                its last position is made of; ``valid``, bool ``[units, frames / 2]``, the positions of the clip.

        Returns:
            ``[units, frames // 4, d_model]``; of a clip of n valid positions the first ``n // 2`` count.
        """
        mel_ufb = inputs["mel"]
        # Positions that see beyond the last frame given are behind the clip: no end needs marking.
        features_upd = self.tower(mel_ufb, jnp.ones(mel_ufb.shape[:2], jnp.bool_), inputs["valid"], attend)
        u, positions, d = features_upd.shape
        pairs = features_upd[:, : positions // 2 * 2].reshape(u, positions // 2, 2, d)
        pooled = pairs.mean(axis=2, dtype=jnp.float32).astype(features_upd.dtype)
        return self.projector(self.tower.final_norm(pooled))
