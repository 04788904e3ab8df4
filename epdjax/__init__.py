"""Serving large multimodal models with encode-prefill-decode disaggregation on JAX."""

from epdjax.mesh.spec import MeshSpec
from epdjax.models import load_model
from epdjax.serving.llm import LLM, AsyncLLM
from epdjax.serving.params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "MeshSpec", "SamplingParams", "load_model"]
