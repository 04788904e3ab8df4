"""Names of Ultravox's tensors, in a checkpoint that holds all of them."""

from epdjax.models.decoder_keys import decoder_rules
from epdjax.models.keymap import Extra, KeyMap, flat, linear_rules, norm_rules
from epdjax.models.whisper_keys import WHISPER_TOWER

ULTRAVOX_KEYS = KeyMap(
    rules=flat(
        WHISPER_TOWER,
        *(
            norm_rules(f"multi_modal_projector.{x}", "encoder", f"projector.{x}")
            for x in ("ln_pre", "ln_mid", "ln_post")
        ),
        *(linear_rules(f"multi_modal_projector.{x}", "encoder", f"projector.{x}") for x in ("linear_1", "linear_2")),
        decoder_rules("language_model.model", "language_model.lm_head"),
    ),
    extras=(
        Extra(
            r"language_model\.lm_head\.weight",
            when=lambda config: config.text.tie_embeddings,
            same_as="language_model.model.embed_tokens.weight",
        ),
        Extra(r".*\.rotary_emb\.inv_freq"),
    ),
)
