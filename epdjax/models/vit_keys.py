"""Names of CLIP and SigLIP towers and of the models around them, as transformers 4 publishes and 5 reads them."""

from epdjax.models.decoder_keys import decoder_rules
from epdjax.models.internvl_keys import PATCH_CONV
from epdjax.models.keymap import Extra, KeyMap, KeyRule, flat, linear_rules, norm_rules

_TOWER = "vision_tower.vision_model"
_LAYER, _OURS = f"{_TOWER}.encoder.layers.{{}}", "tower.layers.{}"

TOWER = flat(
    (
        KeyRule(f"{_TOWER}.embeddings.class_embedding", "encoder", "tower.class_token"),
        KeyRule(f"{_TOWER}.embeddings.position_embedding.weight", "encoder", "tower.positions"),
        KeyRule(f"{_TOWER}.embeddings.patch_embedding.weight", "encoder", "tower.patch_embed.kernel", PATCH_CONV),
        KeyRule(f"{_TOWER}.embeddings.patch_embedding.bias", "encoder", "tower.patch_embed.bias"),
    ),
    norm_rules(f"{_TOWER}.pre_layrnorm", "encoder", "tower.pre_norm"),  # spelt so in every checkpoint
    norm_rules(f"{_LAYER}.layer_norm1", "encoder", f"{_OURS}.norm1"),
    norm_rules(f"{_LAYER}.layer_norm2", "encoder", f"{_OURS}.norm2"),
    *(linear_rules(f"{_LAYER}.self_attn.{x}_proj", "encoder", f"{_OURS}.attention.{x}_proj") for x in "qkv"),
    linear_rules(f"{_LAYER}.self_attn.out_proj", "encoder", f"{_OURS}.attention.o_proj"),
    linear_rules(f"{_LAYER}.mlp.fc1", "encoder", f"{_OURS}.fc1"),
    linear_rules(f"{_LAYER}.mlp.fc2", "encoder", f"{_OURS}.fc2"),
    norm_rules(f"{_TOWER}.post_layernorm", "encoder", "tower.final_norm"),
)


def _keys(*projector: KeyRule, sandwich: bool = False) -> KeyMap:
    """The map of a model with a CLIP or SigLIP tower.

    Args:
        projector: rules of what else its encoder holds.
        sandwich: the decoder is Gemma's, see `decoder_rules`.
    """
    return KeyMap(
        rules=(
            *TOWER,
            *projector,
            *decoder_rules("language_model.model", "language_model.lm_head", sandwich=sandwich),
        ),
        # transformers 5 calls the tower's modules by shorter names, and in memory puts "model." before everything.
        aliases=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.vision_model.", f"{_TOWER}."),
            ("model.vision_tower.", f"{_TOWER}."),
            (f"{_TOWER}.", f"{_TOWER}."),
            ("vision_tower.", f"{_TOWER}."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.image_newline", "image_newline"),
        ),
        extras=(
            Extra(
                r"language_model\.lm_head\.weight",
                when=lambda config: config.text.tie_embeddings,
                same_as="language_model.model.embed_tokens.weight",
            ),
            Extra(r"vision_tower\.vision_model\.head\..*"),  # SigLIP's pooling head, which no LMM reads
            Extra(r"vision_tower\.vision_model\.embeddings\.position_ids"),  # buffers that old versions saved
            Extra(r".*\.rotary_emb\.inv_freq"),
        ),
    )


_PROJECTOR = flat(
    linear_rules("multi_modal_projector.linear_1", "encoder", "projector.linear_1"),
    linear_rules("multi_modal_projector.linear_2", "encoder", "projector.linear_2"),
)

LLAVA_KEYS = _keys(*_PROJECTOR)
LLAVA_ONEVISION_KEYS = _keys(*_PROJECTOR, KeyRule("image_newline", "encoder", "newline"))
GEMMA3_KEYS = _keys(
    KeyRule("multi_modal_projector.mm_input_projection_weight", "encoder", "projector.kernel"),
    KeyRule("multi_modal_projector.mm_soft_emb_norm.weight", "encoder", "projector.norm.scale"),
    sandwich=True,
)
