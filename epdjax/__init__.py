"""Serving large multimodal models with encode-prefill-decode disaggregation on JAX."""

from typing import TYPE_CHECKING

from epdjax.lazy import lazy

if TYPE_CHECKING:
    from epdjax.mesh.spec import MeshSpec
    from epdjax.models import load_model
    from epdjax.models.media import Audio, Video
    from epdjax.serving.llm import LLM, AsyncLLM
    from epdjax.serving.params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "Audio", "MeshSpec", "SamplingParams", "Video", "load_model"]

_HOMES = {
    "LLM": "epdjax.serving.llm",
    "AsyncLLM": "epdjax.serving.llm",
    "Audio": "epdjax.models.media",
    "MeshSpec": "epdjax.mesh.spec",
    "SamplingParams": "epdjax.serving.params",
    "Video": "epdjax.models.media",
    "load_model": "epdjax.models",
}


# `epdjax --help` needs neither JAX nor transformers.
__getattr__ = lazy(__name__, _HOMES)
