"""Names of the decoder's tensors, as transformers writes those of Llama, Mistral, Qwen2, Qwen3 and Gemma 3."""

import re

from epdjax.models.keymap import Extra, KeyRule, flat, linear_rules, norm_rules


def decoder_rules(
    model: str, head: str, part: str = "language_model", *, sandwich: bool = False
) -> tuple[KeyRule, ...]:
    """The decoder's rules.

    Args:
        model: prefix of the base model's tensors (``language_model.model``).
        head: name of the head (``language_model.lm_head``).
        part: they belong to.
        sandwich: Gemma's names, where the norms are one more before and behind the MLP.
    """
    layer, ours = f"{model}.layers.{{}}", "layers.{}"
    norms = {"input_layernorm": "input_norm", "post_attention_layernorm": "mlp_norm"}
    if sandwich:
        norms |= {
            "post_attention_layernorm": "attention_out_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_out_norm",
        }
    return flat(
        (KeyRule(f"{model}.embed_tokens.weight", part, "embedding"),),
        *(norm_rules(f"{layer}.{theirs}", part, f"{ours}.{name}") for theirs, name in norms.items()),
        *(linear_rules(f"{layer}.self_attn.{x}_proj", part, f"{ours}.attention.{x}_proj") for x in "qkvo"),
        *(norm_rules(f"{layer}.self_attn.{x}_norm", part, f"{ours}.attention.{x}_norm") for x in "qk"),
        *(linear_rules(f"{layer}.mlp.{x}_proj", part, f"{ours}.mlp.{x}_proj") for x in ("gate", "up", "down")),
        norm_rules(f"{model}.norm", part, "norm"),
        linear_rules(head, part, "head"),
    )


def decoder_extras(model: str, head: str) -> tuple[Extra, ...]:
    """What checkpoints hold of a decoder besides its parameters; the arguments are those of `decoder_rules`."""
    return (
        Extra(
            re.escape(f"{head}.weight"),
            when=lambda config: config.text.tie_embeddings,
            same_as=f"{model}.embed_tokens.weight",
        ),
        Extra(r".*\.rotary_emb\.inv_freq"),  # a buffer that old versions saved
    )
