"""A whole LMM in one module, for training, export and parity tests; an instance builds the parts its roles need."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from epdjax.models.decoder import LanguageModel


class LMM(nnx.Module):
    """Encoder and language model of a family side by side.

    Args:
        encoder: the family's encoder class.
        config: the family's config; ``config.text`` is the language model's.
    """

    def __init__(self, encoder: Callable[..., Any], config: Any, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.encoder = encoder(config, dtype=dtype, rngs=rngs)
        self.language_model = LanguageModel(config.text, dtype=dtype, rngs=rngs)
        self.config = config
