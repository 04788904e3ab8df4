"""Names of LLaVA-OneVision's tensors."""

from epdjax.models.keymap import KeyRule
from epdjax.models.vit_keys import LLAVA_PROJECTOR, tower_keys

LLAVA_ONEVISION_KEYS = tower_keys(*LLAVA_PROJECTOR, KeyRule("image_newline", "encoder", "newline"))
