"""Names of InternVL's tensors, as ``InternVLForConditionalGeneration.save_pretrained`` writes them."""

from epdjax.models.decoder_keys import decoder_extras, decoder_rules
from epdjax.models.keymap import Extra, KeyMap, KeyRule, flat, leading_ones, linear_rules, norm_rules
from epdjax.models.vit_keys import PATCH_CONV

_VISION = "vision_tower.encoder.layer.{}"
_OURS = "tower.layers.{}"

ENCODER = flat(
    (
        KeyRule("vision_tower.embeddings.cls_token", "encoder", "tower.class_token", leading_ones(2)),
        KeyRule("vision_tower.embeddings.position_embeddings", "encoder", "tower.positions", leading_ones(1)),
        KeyRule(
            "vision_tower.embeddings.patch_embeddings.projection.weight",
            "encoder",
            "tower.patch_embed.kernel",
            PATCH_CONV,
        ),
        KeyRule("vision_tower.embeddings.patch_embeddings.projection.bias", "encoder", "tower.patch_embed.bias"),
        KeyRule(f"{_VISION}.lambda_1", "encoder", f"{_OURS}.scale1"),
        KeyRule(f"{_VISION}.lambda_2", "encoder", f"{_OURS}.scale2"),
    ),
    norm_rules(f"{_VISION}.layernorm_before", "encoder", f"{_OURS}.norm1"),
    norm_rules(f"{_VISION}.layernorm_after", "encoder", f"{_OURS}.norm2"),
    *(linear_rules(f"{_VISION}.attention.{x}_proj", "encoder", f"{_OURS}.attention.{x}_proj") for x in "qkv"),
    linear_rules(f"{_VISION}.attention.projection_layer", "encoder", f"{_OURS}.attention.o_proj"),
    *(norm_rules(f"{_VISION}.attention.{x}_norm", "encoder", f"{_OURS}.attention.{x}_norm") for x in "qk"),
    linear_rules(f"{_VISION}.mlp.fc1", "encoder", f"{_OURS}.fc1"),
    linear_rules(f"{_VISION}.mlp.fc2", "encoder", f"{_OURS}.fc2"),
    norm_rules("vision_tower.layernorm", "encoder", "tower.final_norm"),
    norm_rules("multi_modal_projector.layer_norm", "encoder", "projector.norm"),
    linear_rules("multi_modal_projector.linear_1", "encoder", "projector.linear_1"),
    linear_rules("multi_modal_projector.linear_2", "encoder", "projector.linear_2"),
)


INTERNVL_KEYS = KeyMap(
    rules=ENCODER + decoder_rules("language_model.model", "language_model.lm_head"),
    # What the modules are called in memory under transformers 5; some tools write those names.
    aliases=(
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    extras=(
        *decoder_extras("language_model.model", "language_model.lm_head"),
        Extra(r"vision_tower\.embeddings\.mask_token"),  # only masked pre-training reads it
    ),
)
