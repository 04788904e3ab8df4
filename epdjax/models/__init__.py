"""What an LMM computes: modules, configs, checkpoints, processors. Knows no mesh and no request."""

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
