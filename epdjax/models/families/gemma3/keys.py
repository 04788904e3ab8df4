"""Names of Gemma 3's tensors."""

from epdjax.models.keymap import KeyRule
from epdjax.models.vit_keys import tower_keys

GEMMA3_KEYS = tower_keys(
    KeyRule("multi_modal_projector.mm_input_projection_weight", "encoder", "projector.kernel"),
    KeyRule("multi_modal_projector.mm_soft_emb_norm.weight", "encoder", "projector.norm.scale"),
    sandwich=True,
)
