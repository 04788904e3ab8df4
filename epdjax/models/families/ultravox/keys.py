"""Names of Ultravox's tensors, in a checkpoint that holds all of them."""

from epdjax.models.decoder_keys import decoder_extras, decoder_rules
from epdjax.models.keymap import KeyMap, flat, linear_rules, norm_rules
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
    extras=decoder_extras("language_model.model", "language_model.lm_head"),
)
