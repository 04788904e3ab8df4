"""The Llama-like decoder: Qwen2 and Qwen3 are the same layers with different switches.

How queries meet keys is the caller's business: every layer hands its rotated ``q, k, v`` to an `Attend`. Training and
the parity tests attend densely; serving writes ``k, v`` into a paged pool first. This file knows no caches.

References: HF ``Qwen2Model``, ``Qwen3Model``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import causal_mask, dense_attention
from epdjax.models.layers import Linear, RMSNorm, activation, param


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes and switches of a decoder, in the words of the Hugging Face configs."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    max_position_embeddings: int
    rope_theta: float
    rope_factor: float  # positions are divided by it (linear scaling); 1 for none
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    hidden_act: str

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, tie_embeddings: bool | None = None) -> "TextConfig":
        """Read a ``text_config`` as transformers 4 or 5 writes it.

        Args:
            config: the HF dict; ``model_type`` qwen2 or qwen3.
            tie_embeddings: overrides the dict's own flag (a multimodal config states it at its top level).

        Raises:
            ValueError: a field this decoder cannot honour, named.
        """
        kind = config.get("model_type", "qwen2")
        if kind not in ("qwen2", "qwen3"):
            raise ValueError(f"text_config.model_type is {kind!r}; supported: qwen2, qwen3")
        if config.get("use_sliding_window"):
            raise ValueError("text_config.use_sliding_window is true; sliding-window attention is not supported")
        theta, factor = _rope(config)
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        if tie_embeddings is None:
            tie_embeddings = config.get("tie_word_embeddings", False)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            mlp_size=config["intermediate_size"],
            max_position_embeddings=config["max_position_embeddings"],
            rope_theta=theta,
            rope_factor=factor,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
            qk_norm=kind == "qwen3",
            tie_embeddings=tie_embeddings,
            hidden_act=config.get("hidden_act", "silu"),
        )


def _rope(config: Mapping[str, Any]) -> tuple[float, float]:
    """(theta, linear factor) from ``rope_parameters`` (5.x) or ``rope_theta`` and ``rope_scaling`` (4.x)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "linear":
        return float(theta), float(rope["factor"])
    # "dynamic" only acts beyond max_position_embeddings, which also bounds the context we serve: plain rotary below.
    if kind in ("default", "dynamic"):
        return float(theta), 1.0
    raise ValueError(f"text_config rope_type is {kind!r}; supported: default, linear, dynamic")


class Attend(Protocol):
    """What a decoder layer calls to attend: it may keep `k` and `v`, and must return the attention output.

    Shapes: ``q_btnh``, ``k_btkh``, ``v_btkh`` of the tokens being run; returns ``o_btnh``.
    """

    def __call__(self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array: ...


def attend_causally(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """An `Attend` over just the tokens at hand, each seeing those before it (no cache)."""
    return dense_attention(q, k, v, causal_mask(q.shape[1]))


def rotary(positions_bt: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) ``[b, t, head_dim / 2]`` float32 of the rotary embedding at `positions_bt`."""
    half = config.head_dim // 2
    inv_freq = 1.0 / config.rope_theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions_bt.astype(jnp.float32) / config.rope_factor)[..., None] * inv_freq
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_btnh: jax.Array, cos_bth: jax.Array, sin_bth: jax.Array) -> jax.Array:
    """Apply the half-split rotary embedding, in float32."""
    x1, x2 = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_bth[:, :, None], sin_bth[:, :, None]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_btnh.dtype)


class SelfAttention(nnx.Module):
    """``Qwen2Attention`` / ``Qwen3Attention``: biases in the former, per-head q/k norms in the latter."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        bias = config.qkv_bias
        self.q_proj = Linear(d, n * h, axes=("embed", "heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(d, k * h, axes=("embed", "kv_heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(d, k * h, axes=("embed", "kv_heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(n * h, d, axes=("heads", "embed"), bias=False, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(h, eps=config.norm_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(h, eps=config.norm_eps, dtype=dtype) if config.qk_norm else None
        self.head_dim = h

    def __call__(self, x_btd: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend) -> jax.Array:
        b, t, _ = x_btd.shape
        q_btnh = self.q_proj(x_btd).reshape(b, t, -1, self.head_dim)
        k_btkh = self.k_proj(x_btd).reshape(b, t, -1, self.head_dim)
        v_btkh = self.v_proj(x_btd).reshape(b, t, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_btnh, k_btkh = self.q_norm(q_btnh), self.k_norm(k_btkh)
        o_btnh = attend(layer, rotate(q_btnh, cos, sin), rotate(k_btkh, cos, sin), v_btkh)
        return self.o_proj(o_btnh.reshape(b, t, -1))


class GatedMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.mlp_size
        self.gate_proj = Linear(d, f, axes=("embed", "mlp"), bias=False, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(d, f, axes=("embed", "mlp"), bias=False, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(f, d, axes=("mlp", "embed"), bias=False, dtype=dtype, rngs=rngs)
        self.act = activation(config.hidden_act)

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        return self.down_proj(self.act(self.gate_proj(x_btd)) * self.up_proj(x_btd))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, dtype=dtype)
        self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.post_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, dtype=dtype)
        self.mlp = GatedMLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x_btd: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend) -> jax.Array:
        x_btd = x_btd + self.attention(self.input_norm(x_btd), cos, sin, layer, attend)
        return x_btd + self.mlp(self.post_norm(x_btd))


class LanguageModel(nnx.Module):
    """Token embedding, decoder layers, final norm and head (``Qwen2ForCausalLM``, ``Qwen3ForCausalLM``)."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        table = jax.nn.initializers.normal(0.02)(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        self.embedding = param(table, ("vocab", "embed"))
        self.layers = nnx.List([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps, dtype=dtype)
        self.head = (
            None
            if config.tie_embeddings
            else Linear(
                config.hidden_size, config.vocab_size, axes=("embed", "vocab"), bias=False, dtype=dtype, rngs=rngs
            )
        )
        self.config = config

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """Token ids of any shape to embeddings with one more axis."""
        return jnp.take(self.embedding[...], token_ids, axis=0)

    def __call__(self, x_btd: jax.Array, positions_bt: jax.Array, attend: Attend = attend_causally) -> jax.Array:
        """Embeddings (text or MM tokens) to hidden states after the final norm, ``[b, t, d]``."""
        cos, sin = rotary(positions_bt, self.config)
        for i, layer in enumerate(self.layers):
            x_btd = layer(x_btd, cos, sin, i, attend)
        return self.norm(x_btd)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states ``[..., d]`` to float32 logits ``[..., vocab]``."""
        if self.head is None:
            return jnp.einsum("...d,vd->...v", hidden, self.embedding[...], preferred_element_type=jnp.float32)
        kernel = self.head.kernel[...]
        return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
