"""What a checkpoint says of its language model: sizes and switches of the Llama-like decoder.

Qwen2, Qwen3, Llama, Mistral, InternLM2 and Gemma 3 are one decoder with different switches; this file reads each of
their Hugging Face configs, as transformers 4 or 5 writes it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from epdjax.models.rope import Rope

KINDS = ("gemma3_text", "internlm2", "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes and switches of a decoder, in the words of the Hugging Face configs.

    Attributes:
        rope: rotary embedding of the layers that see everything. local_rope: of those with a window; None: the same.
        windows: per layer, how many tokens back it sees (itself included), or None for all of them; empty: all see all.
        qkv_bias, o_bias: which attention projections have one.
        qk_norm: RMS norms of each head's queries and keys.
        norm_offset: norms scale by ``1 + weight``, in float32 (Gemma).
        sandwich_norms: norms also behind attention and MLP (Gemma).
        embed_scale: text embeddings are multiplied by it.
        query_scale: of attention scores; None: ``head_dim ** -0.5``.
        attn_softcap, logit_softcap: ``cap * tanh(x / cap)`` of scores and logits.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    max_position_embeddings: int
    rope: Rope
    norm_eps: float
    hidden_act: str
    tie_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    local_rope: Rope | None = None
    norm_offset: bool = False
    sandwich_norms: bool = False
    embed_scale: float = 1.0
    query_scale: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, tie_embeddings: bool | None = None) -> "TextConfig":
        """Read a ``text_config`` as transformers 4 or 5 writes it.

        Args:
            config: the HF dict; ``model_type`` one of `KINDS`.
            tie_embeddings: overrides the dict's own flag (a multimodal config states it at its top level).

        Raises:
            ValueError: a field this decoder cannot honour, named.
        """
        kind = config.get("model_type", "qwen2")
        if kind not in KINDS:
            raise ValueError(f"text_config.model_type is {kind!r}; supported: {', '.join(KINDS)}")
        if kind == "gemma3_text":
            config = GEMMA3_DEFAULTS | dict(config)
        if config.get("mlp_bias"):
            raise ValueError("text_config.mlp_bias is true; biases in the MLP are not supported")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        if tie_embeddings is None:
            tie_embeddings = config.get("tie_word_embeddings", False)
        bias = bool(config.get("attention_bias", config.get("bias", False)))
        common: dict[str, Any] = {
            "vocab_size": config["vocab_size"],
            "hidden_size": hidden,
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or hidden // heads,
            "mlp_size": config["intermediate_size"],
            "max_position_embeddings": config["max_position_embeddings"],
            "rope": Rope.from_hf(config),
            "norm_eps": config.get("rms_norm_eps", 1e-6),
            "hidden_act": config.get("hidden_act", "silu"),
            "tie_embeddings": bool(tie_embeddings),
            "qkv_bias": kind in ("qwen2", "qwen2_5_vl_text") or bias,
            "o_bias": bias and not kind.startswith("qwen2"),
            "qk_norm": kind.startswith(("qwen3", "gemma3")),
            "windows": _windows(kind, config),
        }
        return cls(**(common | (_gemma3(config) if kind == "gemma3_text" else {})))


# Published configs leave out what is as in these classes (HF ``LlamaConfig``, ``MistralConfig``, ``Qwen2Config``,
# ``Qwen3Config``).
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
}

# What Gemma 3's published configs leave out (HF ``Gemma3TextConfig``).
GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
}


def _gemma3(config: Mapping[str, Any]) -> dict[str, Any]:
    """The switches that Gemma 3 alone sets."""
    ropes = config.get("rope_parameters") or {}
    if "full_attention" not in ropes and "sliding_attention" not in ropes:
        ropes = {"full_attention": config.get("rope_scaling")}
    wide, near = (ropes.get(name) or {} for name in ("full_attention", "sliding_attention"))
    length = {"max_position_embeddings": config["max_position_embeddings"]}
    return {
        "rope": Rope.from_hf(length, {"rope_theta": config["rope_theta"]} | dict(wide)),
        "local_rope": Rope.from_hf(length, {"rope_theta": config["rope_local_base_freq"]} | dict(near)),
        "hidden_act": config["hidden_activation"],
        "norm_offset": True,
        "sandwich_norms": True,
        "embed_scale": config["hidden_size"] ** 0.5,
        "query_scale": config["query_pre_attn_scalar"] ** -0.5,
        "attn_softcap": config.get("attn_logit_softcapping"),
        "logit_softcap": config.get("final_logit_softcapping"),
    }


def _windows(kind: str, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """How far back each layer sees; empty where all see everything."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if kind == "mistral":
        return (window,) * layers if window else ()
    if kind != "gemma3_text" and not (kind.startswith("qwen") and config.get("use_sliding_window")):
        return ()
    types = config.get("layer_types")
    if types is None and kind == "gemma3_text":
        every = config["sliding_window_pattern"]
        types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    elif types is None:
        full = config.get("max_window_layers", layers)
        types = ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    windows = tuple(window if name == "sliding_attention" else None for name in types)
    return windows if any(windows) else ()
