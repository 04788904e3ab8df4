"""A small InternVL that answers questions about simple shapes, bundled so that everything runs without a download."""

from pathlib import Path


def demo_model_path() -> Path:
    """The folder of the bundled demo model, in the Hugging Face layout."""
    return Path(__file__).parent / "model"
