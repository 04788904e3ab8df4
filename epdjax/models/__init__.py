"""What an LMM computes: modules, configs, checkpoints, processors. Knows no mesh and no request."""

from typing import TYPE_CHECKING

from epdjax.lazy import lazy

if TYPE_CHECKING:
    from epdjax.models.checkpoint import CheckpointError, Placement, export_hf, load_model, load_part
    from epdjax.models.registry import Family, abstract_part, config_of, dtype_of, family_of

__all__ = [
    "CheckpointError",
    "Family",
    "Placement",
    "abstract_part",
    "config_of",
    "dtype_of",
    "export_hf",
    "family_of",
    "load_model",
    "load_part",
]

_CHECKPOINT, _REGISTRY = "epdjax.models.checkpoint", "epdjax.models.registry"
_HOMES = {
    **dict.fromkeys(("CheckpointError", "Placement", "export_hf", "load_model", "load_part"), _CHECKPOINT),
    **dict.fromkeys(("Family", "abstract_part", "config_of", "dtype_of", "family_of"), _REGISTRY),
}

# Decoder processes import `models.media` alone, and must not wait for JAX and transformers.
__getattr__ = lazy(__name__, _HOMES)
