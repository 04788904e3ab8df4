"""Names of Qwen2-Audio's tensors."""

from epdjax.models.decoder_keys import decoder_rules
from epdjax.models.keymap import Extra, KeyMap, linear_rules
from epdjax.models.whisper_keys import WHISPER_TOWER

QWEN2_AUDIO_KEYS = KeyMap(
    rules=(
        *WHISPER_TOWER,
        *linear_rules("multi_modal_projector.linear", "encoder", "projector"),
        *decoder_rules("language_model.model", "language_model.lm_head"),
    ),
    # In memory, transformers 5 puts "model." before all.
    aliases=(
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    extras=(Extra(r".*\.rotary_emb\.inv_freq"),),
)
