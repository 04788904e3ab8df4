"""Whisper's encoder: two convolutions over log-mel frames, positions, and the layers of a plain transformer.

Qwen2-Audio and Ultravox share it. A unit is a stretch of log-mel frames of at most one window (30 s); two frames become
one position. References: HF ``WhisperEncoder``, ``Qwen2AudioEncoder``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import UnitAttend, blocked_attention
from epdjax.models.layers import LayerNorm, Linear, activation, param
from epdjax.models.vit import VisionLayer

TAPS = 3  # frames that a convolution sees: the one before, its own, the next


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes and switches of the encoder, in the words of `epdjax.models.vit`.

    Attributes:
        mel_bins: values of a log-mel frame.
        max_positions: rows of the position table, each two frames.
    """

    mel_bins: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    max_positions: int
    hidden_act: str
    norm_type: str = "layer_norm"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    qkv_bias: bool = True
    key_bias: bool = False
    layer_scale_init: float | None = None

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def window(self) -> int:
        """Log-mel frames that it takes at most."""
        return 2 * self.max_positions

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "WhisperConfig":
        """Read an ``audio_config`` in which nothing is left out.

        Raises:
            ValueError: a field that the encoder cannot honour, named.
        """
        width, heads = config["d_model"], config["encoder_attention_heads"]
        if width % heads:
            raise ValueError(f"audio_config.encoder_attention_heads {heads} does not divide d_model {width}")
        activation(config["activation_function"])
        return cls(
            mel_bins=config["num_mel_bins"],
            hidden_size=width,
            num_layers=config["encoder_layers"],
            num_heads=heads,
            mlp_size=config["encoder_ffn_dim"],
            max_positions=config["max_source_positions"],
            hidden_act=config["activation_function"],
        )

    def frame_sizes(self, most: int) -> tuple[int, ...]:
        """Declared numbers of frames, all even: parts of a window, up to one that holds `most` frames."""
        largest = _even(min(most, self.window))
        parts = {_even(-(-self.window // part)) for part in (8, 4, 2)}
        return (*sorted(size for size in parts if size < largest), largest)


def _even(count: int) -> int:
    return count + count % 2


class WhisperTower(nnx.Module):
    """Log-mel frames to features; the families differ in what they do before its `final_norm`."""

    def __init__(self, config: WhisperConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, axes = config.hidden_size, ("vision_in", "vision_out")
        self.conv1 = Linear(TAPS * config.mel_bins, d, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        self.conv2 = Linear(TAPS * d, d, axes=axes, bias=True, dtype=dtype, rngs=rngs)
        table = jax.nn.initializers.normal(0.02)(rngs.params(), (config.max_positions, d), dtype)
        self.positions = param(table, (None, None))
        self.layers = nnx.List([VisionLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = LayerNorm(d, eps=config.norm_eps, dtype=dtype)

    def __call__(
        self,
        mel_ufb: jax.Array,
        frames_uf: jax.Array,
        valid_up: jax.Array,
        attend: UnitAttend = blocked_attention,
    ) -> jax.Array:
        """Features before the final norm.

        Args:
            mel_ufb: float32 ``[units, frames, mel_bins]``, an even number of frames; zero where `frames_uf` is not set.
            frames_uf: bool, the frames that there are: behind them the second convolution sees zeros, as it does at
                the end of an array of just that length.
            valid_up: bool ``[units, frames / 2]``, the positions that others may look at.
            attend: how positions attend to one another.

        Returns:
            ``[units, frames / 2, hidden_size]`` in the parameters' dtype, for every position.
        """
        gelu = activation("gelu")
        x_ufd = gelu(self.conv1(_neighbours(mel_ufb.astype(self.conv1.kernel.dtype))))
        x_ufd = jnp.where(frames_uf[..., None], x_ufd, 0)
        x_upd = gelu(self.conv2(_neighbours(x_ufd)[:, ::2]))
        x_upd = x_upd + self.positions[...][: x_upd.shape[1]]
        for layer in self.layers:
            x_upd = layer(x_upd, valid_up, attend)
        return x_upd


def _neighbours(x_ufd: jax.Array) -> jax.Array:
    """Each frame between the one before and the next, ``[units, frames, TAPS * d]``; zeros beyond the ends."""
    frames = x_ufd.shape[1]
    padded = jnp.pad(x_ufd, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + frames] for tap in range(TAPS)], axis=-1)
