"""Whether the head of a language model is its embeddings, where config.json does not say so.

Reference: HF ``PreTrainedModel.tie_weights``. Some families tie by default, and transformers 4 wrote no flag at all for
those of their checkpoints that do not: they are tied, unless the checkpoint holds a head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from epdjax.models.reading import CONVERTED, INDEX, SINGLE, read_json

FLAG = "tie_word_embeddings"
TIED_BY_DEFAULT = ("gemma3", "internvl")  # HF ``Gemma3Config``, ``InternVLConfig``


def with_tie_flag(hf_config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`hf_config`, with a flag that is right for the checkpoint in `folder` where it has none."""
    if hf_config.get("model_type") not in TIED_BY_DEFAULT or hf_config.get(FLAG) is not None:
        return hf_config
    return hf_config | {FLAG: not _stores_head(folder)}


def _stores_head(folder: Path) -> bool:
    try:
        return any(name.endswith("lm_head.weight") for name in _names(folder))
    except (SafetensorError, OSError, ValueError, AttributeError):
        return False  # whoever reads the tensors says what is wrong with them


def _names(folder: Path) -> list[str]:
    if (folder / CONVERTED).is_file():
        return ["lm_head.weight"] if read_json(folder / CONVERTED).get("head") else []
    if (folder / SINGLE).is_file():
        with safe_open(folder / SINGLE, framework="np") as file:
            return list(file.keys())
    index: Mapping[str, Any] = read_json(folder / INDEX).get("weight_map") or {}
    return list(index)
