"""Names of Gemma 3's tensors."""

from epdjax.models.keymap import TRANSPOSED, KeyRule
from epdjax.models.vit_keys import tower_keys

GEMMA3_KEYS = tower_keys(
    # A matrix, not a torch Linear.
    KeyRule("multi_modal_projector.mm_input_projection_weight", "encoder", "projector.linear.kernel", TRANSPOSED),
    KeyRule("multi_modal_projector.mm_soft_emb_norm.weight", "encoder", "projector.norm.scale"),
    sandwich=True,
)
