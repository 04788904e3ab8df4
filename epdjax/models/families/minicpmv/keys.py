"""Names of MiniCPM-V 2.6's tensors, as OpenBMB publishes them."""

from epdjax.models.decoder_keys import decoder_extras, decoder_rules
from epdjax.models.keymap import TRANSPOSED, Extra, KeyMap, KeyRule, flat, fused_rows, linear_rules, norm_rules
from epdjax.models.vit_keys import PATCH_CONV, layer_rules

_RESAMPLER = "resampler.attn"

ENCODER = flat(
    (
        KeyRule("vpm.embeddings.position_embedding.weight", "encoder", "tower.positions"),
        KeyRule("vpm.embeddings.patch_embedding.weight", "encoder", "tower.patch_embed.kernel", PATCH_CONV),
        KeyRule("vpm.embeddings.patch_embedding.bias", "encoder", "tower.patch_embed.bias"),
    ),
    layer_rules("vpm.encoder.layers.{}"),
    norm_rules("vpm.post_layernorm", "encoder", "tower.final_norm"),
    (
        KeyRule("resampler.query", "encoder", "resampler.queries"),
        KeyRule("resampler.proj", "encoder", "resampler.out_proj.kernel", TRANSPOSED),  # a matrix, not a torch Linear
        *(
            KeyRule(f"{_RESAMPLER}.in_proj_{theirs}", "encoder", f"resampler.{x}_proj.{ours}", fused_rows(i, 3))
            for i, x in enumerate("qkv")
            for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
        ),
    ),
    linear_rules("resampler.kv_proj", "encoder", "resampler.kv_proj"),
    linear_rules("resampler.attn.out_proj", "encoder", "resampler.o_proj"),
    norm_rules("resampler.ln_q", "encoder", "resampler.query_norm"),
    norm_rules("resampler.ln_kv", "encoder", "resampler.kv_norm"),
    norm_rules("resampler.ln_post", "encoder", "resampler.out_norm"),
)

MINICPMV_KEYS = KeyMap(
    rules=ENCODER + decoder_rules("llm.model", "llm.lm_head"),
    extras=(
        *decoder_extras("llm.model", "llm.lm_head"),
        Extra(r"resampler\.pos_embed"),  # a table that follows from its formula
        Extra(r"vpm\.embeddings\.position_ids"),  # buffers that old versions saved
    ),
)
