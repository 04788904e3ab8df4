"""Serving large multimodal models with encode-prefill-decode disaggregation on JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epdjax.mesh.spec import MeshSpec
    from epdjax.models import load_model
    from epdjax.serving.llm import LLM, AsyncLLM
    from epdjax.serving.params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "MeshSpec", "SamplingParams", "load_model"]

_HOMES = {
    "LLM": "epdjax.serving.llm",
    "AsyncLLM": "epdjax.serving.llm",
    "MeshSpec": "epdjax.mesh.spec",
    "SamplingParams": "epdjax.serving.params",
    "load_model": "epdjax.models",
}


def __getattr__(name: str) -> Any:
    """Import public names when first used: JAX and transformers take seconds, and `epdjax --help` needs neither."""
    if name not in _HOMES:
        raise AttributeError(f"module 'epdjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
