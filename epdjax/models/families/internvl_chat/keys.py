"""Names of InternVL2's tensors in the layout of its authors, with InternLM2 or a Llama-like language model."""

import dataclasses
from typing import Any

import numpy as np

from epdjax.models.decoder_keys import decoder_rules
from epdjax.models.keymap import (
    Extra,
    KeyMap,
    KeyRule,
    Shape,
    Transform,
    flat,
    fused_linear_rules,
    leading_ones,
    linear_rules,
    norm_rules,
)
from epdjax.models.vit_keys import PATCH_CONV


def _groups(x: np.ndarray, config: Any, piece: str) -> np.ndarray:
    """Rows of `piece` (q, k or v) in InternLM2's ``wqkv``, as a view ``[kv_heads, heads of the piece, head_dim, ...]``.

    The rows of one key head are together: first those of the query heads that read it, then its own, then its values'.
    """
    text = config.text
    queries = text.num_heads // text.num_kv_heads
    span = {"q": slice(0, queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, queries + 2)}[piece]
    return x.reshape(text.num_kv_heads, queries + 2, text.head_dim, *x.shape[1:])[:, span]


def _wqkv(piece: str) -> Transform:
    """One of the three projections that InternLM2 fuses."""

    def hf_shape(shape: Shape, config: Any) -> Shape:
        text = config.text
        return ((text.num_heads + 2 * text.num_kv_heads) * text.head_dim, *shape[1:])

    def load(x: np.ndarray, shape: Shape, config: Any) -> np.ndarray:
        return _groups(x, config, piece).reshape(shape)

    def save(x: np.ndarray, out: np.ndarray, config: Any) -> None:
        view = _groups(out, config, piece)
        view[...] = x.reshape(view.shape)

    return Transform(hf_shape, load, save)


def internlm2_rules(model: str, head: str, part: str = "language_model") -> tuple[KeyRule, ...]:
    """InternLM2's names of the decoder's tensors; arguments as those of `decoder_rules`."""
    layer, ours = f"{model}.layers.{{}}", "layers.{}"
    fused = tuple(
        KeyRule(f"{layer}.attention.wqkv.{theirs}", part, f"{ours}.attention.{x}_proj.{name}", _wqkv(x))
        for x in "qkv"
        for theirs, name in (("weight", "kernel"), ("bias", "bias"))
    )
    mlp = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    return flat(
        (
            KeyRule(f"{model}.tok_embeddings.weight", part, "embedding"),
            KeyRule(f"{head}.weight", part, "head.kernel"),
        ),
        norm_rules(f"{layer}.attention_norm", part, f"{ours}.input_norm"),
        fused,
        linear_rules(f"{layer}.attention.wo", part, f"{ours}.attention.o_proj"),
        norm_rules(f"{layer}.ffn_norm", part, f"{ours}.mlp_norm"),
        *(linear_rules(f"{layer}.feed_forward.{w}", part, f"{ours}.mlp.{name}") for w, name in mlp.items()),
        norm_rules(f"{model}.norm", part, "norm"),
    )


_VISION, _OURS = "vision_model.encoder.layers.{}", "tower.layers.{}"

ENCODER = flat(
    (
        KeyRule("vision_model.embeddings.class_embedding", "encoder", "tower.class_token", leading_ones(2)),
        KeyRule("vision_model.embeddings.position_embedding", "encoder", "tower.positions", leading_ones(1)),
        KeyRule("vision_model.embeddings.patch_embedding.weight", "encoder", "tower.patch_embed.kernel", PATCH_CONV),
        KeyRule("vision_model.embeddings.patch_embedding.bias", "encoder", "tower.patch_embed.bias"),
        KeyRule(f"{_VISION}.ls1", "encoder", f"{_OURS}.scale1"),
        KeyRule(f"{_VISION}.ls2", "encoder", f"{_OURS}.scale2"),
    ),
    norm_rules(f"{_VISION}.norm1", "encoder", f"{_OURS}.norm1"),
    norm_rules(f"{_VISION}.norm2", "encoder", f"{_OURS}.norm2"),
    fused_linear_rules(f"{_VISION}.attn.qkv", "encoder", (f"{_OURS}.attention.{x}_proj" for x in "qkv")),
    *(norm_rules(f"{_VISION}.attn.{x}_norm", "encoder", f"{_OURS}.attention.{x}_norm") for x in "qk"),
    linear_rules(f"{_VISION}.attn.proj", "encoder", f"{_OURS}.attention.o_proj"),
    linear_rules(f"{_VISION}.mlp.fc1", "encoder", f"{_OURS}.fc1"),
    linear_rules(f"{_VISION}.mlp.fc2", "encoder", f"{_OURS}.fc2"),
    norm_rules("mlp1.0", "encoder", "projector.norm"),
    linear_rules("mlp1.1", "encoder", "projector.linear_1"),
    linear_rules("mlp1.3", "encoder", "projector.linear_2"),
)


def _is_internlm2(config: Any) -> bool:
    return config.text_kind == "internlm2"


INTERNVL_CHAT_KEYS = KeyMap(
    rules=flat(
        ENCODER,
        (
            dataclasses.replace(rule, when=_is_internlm2)
            for rule in internlm2_rules("language_model.model", "language_model.output")
        ),
        (
            dataclasses.replace(rule, when=lambda config: not _is_internlm2(config))
            for rule in decoder_rules("language_model.model", "language_model.lm_head")
        ),
    ),
    extras=(
        Extra(
            r"language_model\.lm_head\.weight",
            when=lambda config: config.text.tie_embeddings and not _is_internlm2(config),
            same_as="language_model.model.embed_tokens.weight",
        ),
        Extra(r".*\.rotary_emb\.inv_freq"),  # a buffer that old versions saved
    ),
)
