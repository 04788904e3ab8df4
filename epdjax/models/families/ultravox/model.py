"""Ultravox (``model_type: ultravox``): Whisper's encoder, a projector of stacked positions, and a Llama-like decoder.

A clip, or each window of a long one, is an encode unit. Reference: the ``UltravoxModel`` of fixie-ai's repository, in
two generations: v0.3, and the later one (v0.5 and on, whose configs have ``projector_ln_mid``). Later ones hear the
silence that clips of a request are padded with; see `processor`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import Linear, RMSNorm
from epdjax.models.model_config import ModelConfig
from epdjax.models.text_config import TEXT_DEFAULTS, TextConfig
from epdjax.models.whisper import WhisperConfig, WhisperTower

NORM_EPS = 1e-6  # of the projector's norms

# What published configs leave out (HF ``WhisperConfig``).
AUDIO_DEFAULTS: dict[str, Any] = {
    "model_type": "whisper",
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "d_model": 384,
    "activation_function": "gelu",
    "max_source_positions": 1500,
}


@dataclasses.dataclass(frozen=True)
class UltravoxConfig(ModelConfig):
    """An Ultravox model: audio tower, projector and decoder.

    Attributes:
        stack: positions of the tower that become one MM token.
        projector_size: width between the projector's matrices, both halves of its gate together.
        norm_mid: the projector's second norm is before its second matrix, not behind it.
        later: clips are cut and padded as after v0.3.
    """

    audio: WhisperConfig
    text: TextConfig
    stack: int
    projector_size: int
    norm_mid: bool
    later: bool

    modalities: ClassVar[tuple[str, ...]] = ("audio",)

    @property
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Width of the tower's attention heads."""
        return (self.audio.head_dim,)

    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """Declared numbers of log-mel frames, the last enough for a window of `max_tokens` MM tokens."""
        return self.audio.frame_sizes(2 * self.stack * max_tokens + 1)

    def unit_inputs(self, size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the encoder's inputs for one unit of `size` frames."""
        return {
            "mel": ((size, self.audio.mel_bins), np.float32),
            "frames": ((size,), np.bool_),
            "valid": ((size // 2,), np.bool_),
            "kept": ((size // 2,), np.bool_),
        }

    def unit_tokens(self, size: int) -> int:
        """MM tokens the encoder makes of a unit of `size` frames."""
        return -(-(size // 2) // self.stack)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "UltravoxConfig":
        """Read config.json of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named; or a checkpoint that holds the projector alone.
        """
        named = {part: config[f"{part}_model_id"] for part in ("audio", "text") if config.get(f"{part}_model_id")}
        if named:
            raise ValueError(
                "this checkpoint holds the projector alone; config.json names the models that it belongs to: "
                + ", ".join(f"{part}_model_id {name!r}" for part, name in named.items())
                + ". Put all into one folder: python -m epdjax.models.families.ultravox.merge "
                "THIS_FOLDER AUDIO_FOLDER TEXT_FOLDER NEW_FOLDER"
            )
        if (act := config.get("projector_act", "swiglu")) != "swiglu":
            raise ValueError(f"projector_act is {act!r}; supported: swiglu")
        if (block := config.get("audio_latency_block_size")) is not None:
            raise ValueError(f"audio_latency_block_size is {block}; streaming encoders are not supported")
        audio = AUDIO_DEFAULTS | dict(config.get("audio_config") or {})
        if (kind := audio["model_type"]) != "whisper":
            raise ValueError(f"audio_config.model_type is {kind!r}; supported: whisper")
        text = {"model_type": "llama"} | dict(config.get("text_config") or {})
        if (kind := text["model_type"]) not in TEXT_DEFAULTS:
            raise ValueError(f"text_config.model_type is {kind!r}; supported: {', '.join(TEXT_DEFAULTS)}")
        if (size := config.get("hidden_size", 4096)) % 2:
            raise ValueError(f"hidden_size is {size}; it must be even, half of it gates the other half")
        return cls(
            audio=WhisperConfig.from_hf(audio),
            text=TextConfig.from_hf(TEXT_DEFAULTS[kind] | text),
            stack=config.get("stack_factor", 8),
            projector_size=size,
            norm_mid=bool(config.get("projector_ln_mid")),
            later="projector_ln_mid" in config,
        )


class UltravoxProjector(nnx.Module):
    """Positions side by side, a norm, and a gated MLP with another norm (``UltravoxProjector``)."""

    def __init__(self, config: UltravoxConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, axes = config, ("vision_in", "vision_out")
        d_in, d_mid, d_out = c.audio.hidden_size * c.stack, c.projector_size, c.text.hidden_size
        self.ln_pre = RMSNorm(d_in, eps=NORM_EPS, dtype=dtype)
        self.linear_1 = Linear(d_in, d_mid, axes=axes, bias=False, dtype=dtype, rngs=rngs)
        self.ln_mid = RMSNorm(d_mid // 2, eps=NORM_EPS, dtype=dtype) if c.norm_mid else None
        self.linear_2 = Linear(d_mid // 2, d_out, axes=axes, bias=False, dtype=dtype, rngs=rngs)
        self.ln_post = None if c.norm_mid else RMSNorm(d_out, eps=NORM_EPS, dtype=dtype)
        self.stack = c.stack

    def __call__(self, x_upd: jax.Array) -> jax.Array:
        """Features ``[units, positions, d_audio]`` to MM tokens ``[units, ceil(positions / stack), d_model]``."""
        u, positions, d = x_upd.shape
        tokens = -(-positions // self.stack)
        filled = jnp.pad(x_upd, ((0, 0), (0, tokens * self.stack - positions), (0, 0)))
        value, gate = jnp.split(self.linear_1(self.ln_pre(filled.reshape(u, tokens, self.stack * d))), 2, axis=-1)
        x_utd = value * jax.nn.silu(gate)
        x_utd = self.linear_2(x_utd if self.ln_mid is None else self.ln_mid(x_utd))
        return x_utd if self.ln_post is None else self.ln_post(x_utd)


class UltravoxEncoder(nnx.Module):
    """All that an E instance holds: audio tower and projector."""

    def __init__(self, config: UltravoxConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = WhisperTower(config.audio, dtype=dtype, rngs=rngs)
        self.projector = UltravoxProjector(config, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: Mapping[str, jax.Array], attend: UnitAttend = blocked_attention) -> jax.Array:
        """Log-mel frames to MM tokens.

        Args:
            inputs: ``mel``, float32 ``[units, frames, mel_bins]``; bool ``frames``, those that there are, of the clip
                or its padding; bool ``[units, frames / 2]`` ``valid``, the positions of the clip, which others look
                at, and ``kept``, those that are stacked: the others are zero.

        Returns:
            ``[units, ceil(frames / 2 / stack), d_model]``.
        """
        features_upd = self.tower.final_norm(self.tower(inputs["mel"], inputs["frames"], inputs["valid"], attend))
        return self.projector(jnp.where(inputs["kept"][..., None], features_upd, 0))
