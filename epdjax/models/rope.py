"""Rotary position embeddings, in the kinds that checkpoints ask for.

References: HF ``modeling_rope_utils``, ``Qwen2_5_VLTextModel`` and ``Qwen3VLTextRotaryEmbedding`` (M-RoPE).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slows the low frequencies down by `factor` and leaves the high ones alone (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Attributes:
        theta: base of the frequencies.
        factor: positions are divided by it (linear scaling).
        llama3: scaling of single frequencies, or None.
        sections: M-RoPE: how many frequencies follow time, height and width; empty for plain positions.
        interleaved: the three take turns over the frequencies instead of following one another.
    """

    theta: float = 10000.0
    factor: float = 1.0
    llama3: Llama3Scaling | None = None
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], rope: Mapping[str, Any] | None = None) -> "Rope":
        """Read ``rope_parameters`` (5.x) or ``rope_theta`` and ``rope_scaling`` (4.x) of a text config.

        Args:
            config: the text config.
            rope: the parameters to read instead of the config's own (one kind of layers).

        Raises:
            ValueError: a kind of scaling that is not supported, named.
        """
        rope = rope or config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        if (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
            raise ValueError("partial_rotary_factor is not 1; rotary embeddings of part of a head are not supported")
        sections = tuple(rope.get("mrope_section") or ())
        plain = cls(theta, sections=sections, interleaved=bool(rope.get("mrope_interleaved")))
        kind = rope.get("rope_type") or rope.get("type") or "default"
        # "dynamic" acts beyond max_position_embeddings alone, which also bounds the context we serve: plain below.
        if kind in ("default", "dynamic", "mrope"):
            return plain
        if kind == "linear":
            return dataclasses.replace(plain, factor=float(rope["factor"]))
        if kind == "llama3":
            original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
            low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
            scaling = Llama3Scaling(float(rope["factor"]), low, high, int(original))
            return dataclasses.replace(plain, llama3=scaling)
        raise ValueError(f"text_config rope_type is {kind!r}; supported: default, linear, dynamic, llama3, mrope")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Inverse frequencies, float32 ``[head_dim / 2]``."""
        half = head_dim // 2
        frequencies = 1.0 / np.float32(self.theta) ** (np.arange(half, dtype=np.float32) / half)
        if (scaling := self.llama3) is not None:
            turns = scaling.original_length * frequencies / (2 * math.pi)
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            keep = np.clip((turns - low) / (high - low), 0, 1)
            frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
        return (frequencies / self.factor).astype(np.float32)

    def axes(self, head_dim: int) -> np.ndarray:
        """Which of (time, height, width) each frequency follows, int ``[head_dim / 2]``."""
        half = head_dim // 2
        if not self.interleaved:
            return np.repeat(np.arange(3), self.sections)
        axes = np.zeros(half, int)
        for axis in (1, 2):
            axes[axis : 3 * self.sections[axis] : 3] = axis
        return axes


def rotary(positions: jax.Array, rope: Rope, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) ``[b, t, head_dim / 2]`` float32 at positions ``[b, t]``, or ``[b, t, 3]`` for M-RoPE."""
    at = positions.astype(jnp.float32)
    at_bth = at[..., rope.axes(head_dim)] if rope.sections else at[..., None]
    angles = at_bth * rope.frequencies(head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_btnh: jax.Array, cos_bth: jax.Array, sin_bth: jax.Array) -> jax.Array:
    """Apply the half-split rotary embedding, in float32."""
    x1, x2 = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_bth[:, :, None], sin_bth[:, :, None]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_btnh.dtype)
