"""Names of LLaVA's tensors."""

from epdjax.models.vit_keys import LLAVA_PROJECTOR, tower_keys

LLAVA_KEYS = tower_keys(*LLAVA_PROJECTOR)
