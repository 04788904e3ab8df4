"""The Llama-like decoder: Qwen2, Qwen3, Llama, Mistral, InternLM2 and Gemma 3 are one set of layers with switches.

How queries meet keys is the caller's business: every layer hands its rotated ``q, k, v`` to an `Attend`. Training and
the parity tests attend densely; serving writes ``k, v`` into a paged pool first. This file knows no caches.

References: HF ``Qwen2Model``, ``Qwen3Model``, ``LlamaModel``, ``Gemma3TextModel``; ``Qwen3VLTextModel`` for `levels`.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.models.attention import FULL, AttentionKind, causal_mask, dense_attention
from epdjax.models.layers import Linear, RMSNorm, activation, param
from epdjax.models.rope import rotary, rotate
from epdjax.models.text_config import TextConfig


class Attend(Protocol):
    """What a decoder layer calls to attend: it may keep `k` and `v`, and must return the attention output.

    Shapes: ``q_btnh``, ``k_btkh``, ``v_btkh`` of the tokens being run; returns ``o_btnh``.
    """

    def __call__(
        self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array, kind: AttentionKind = FULL
    ) -> jax.Array: ...


def attend_causally(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, kind: AttentionKind = FULL) -> jax.Array:
    """An `Attend` over just the tokens at hand, each seeing those before it (no cache)."""
    return dense_attention(q, k, v, causal_mask(q.shape[1], kind.window), kind.scale, kind.softcap)


def _norm(d: int, config: TextConfig, dtype: jnp.dtype) -> RMSNorm:
    return RMSNorm(d, eps=config.norm_eps, dtype=dtype, offset=config.norm_offset)


class SelfAttention(nnx.Module):
    """``Qwen2Attention`` and its like: biases, q/k norms per head, windows and soft-capping by configuration."""

    def __init__(self, config: TextConfig, layer: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        bias = config.qkv_bias
        self.q_proj = Linear(d, n * h, axes=("embed", "heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(d, k * h, axes=("embed", "kv_heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(d, k * h, axes=("embed", "kv_heads"), bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(n * h, d, axes=("heads", "embed"), bias=config.o_bias, dtype=dtype, rngs=rngs)
        self.q_norm = _norm(h, config, dtype) if config.qk_norm else None
        self.k_norm = _norm(h, config, dtype) if config.qk_norm else None
        self.head_dim = h
        window = config.windows[layer] if config.windows else None
        self.kind = AttentionKind(window, config.query_scale, config.attn_softcap)

    def __call__(self, x_btd: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend) -> jax.Array:
        b, t, _ = x_btd.shape
        q_btnh = self.q_proj(x_btd).reshape(b, t, -1, self.head_dim)
        k_btkh = self.k_proj(x_btd).reshape(b, t, -1, self.head_dim)
        v_btkh = self.v_proj(x_btd).reshape(b, t, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_btnh, k_btkh = self.q_norm(q_btnh), self.k_norm(k_btkh)
        o_btnh = attend(layer, rotate(q_btnh, cos, sin), rotate(k_btkh, cos, sin), v_btkh, self.kind)
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
    """Pre-norm attention and MLP with residuals; Gemma norms what they return as well (`sandwich_norms`)."""

    def __init__(self, config: TextConfig, layer: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        self.input_norm = _norm(d, config, dtype)
        self.attention = SelfAttention(config, layer, dtype=dtype, rngs=rngs)
        self.attention_out_norm = _norm(d, config, dtype) if config.sandwich_norms else None
        self.mlp_norm = _norm(d, config, dtype)
        self.mlp = GatedMLP(config, dtype=dtype, rngs=rngs)
        self.mlp_out_norm = _norm(d, config, dtype) if config.sandwich_norms else None

    def __call__(self, x_btd: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend) -> jax.Array:
        attended = self.attention(self.input_norm(x_btd), cos, sin, layer, attend)
        x_btd = x_btd + (attended if self.attention_out_norm is None else self.attention_out_norm(attended))
        made = self.mlp(self.mlp_norm(x_btd))
        return x_btd + (made if self.mlp_out_norm is None else self.mlp_out_norm(made))


class LanguageModel(nnx.Module):
    """Token embedding, decoder layers, final norm and head (``Qwen2ForCausalLM`` and its like)."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        table = jax.nn.initializers.normal(0.02)(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        self.embedding = param(table, ("vocab", "embed"))
        self.layers = nnx.List([DecoderLayer(config, i, dtype=dtype, rngs=rngs) for i in range(config.num_layers)])
        self.norm = _norm(config.hidden_size, config, dtype)
        self.head = (
            None
            if config.tie_embeddings
            else Linear(
                config.hidden_size, config.vocab_size, axes=("embed", "vocab"), bias=False, dtype=dtype, rngs=rngs
            )
        )
        self.config = config

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """Token ids of any shape to embeddings with one more axis, scaled where the model scales them."""
        x = jnp.take(self.embedding[...], token_ids, axis=0)
        return x if self.config.embed_scale == 1.0 else x * jnp.asarray(self.config.embed_scale, x.dtype)

    def __call__(
        self,
        x_btd: jax.Array,
        positions: jax.Array,
        attend: Attend = attend_causally,
        levels_btld: jax.Array | None = None,
    ) -> jax.Array:
        """Embeddings (text or MM tokens) to hidden states after the final norm, ``[b, t, d]``.

        Args:
            positions: int32 ``[b, t]``, or ``[b, t, 3]`` for M-RoPE.
            levels_btld: DeepStack: what is added to the hidden states after each of the first ``l`` layers; zeros where
                there is text.
        """
        c = self.config
        wide = rotary(positions, c.rope, c.head_dim)
        near = wide if c.local_rope is None else rotary(positions, c.local_rope, c.head_dim)
        for i, layer in enumerate(self.layers):
            x_btd = layer(x_btd, *(wide if layer.attention.kind.window is None else near), i, attend)
            if levels_btld is not None and i < levels_btld.shape[2]:
                x_btd = x_btd + levels_btld[:, :, i]
        return self.norm(x_btd)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states ``[..., d]`` to float32 logits ``[..., vocab]``."""
        table_vd = (self.embedding if self.head is None else self.head.kernel)[...]
        logits = jnp.einsum("...d,vd->...v", hidden, table_vd, preferred_element_type=jnp.float32)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
