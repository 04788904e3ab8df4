"""A trained demo model as a Hugging Face folder: weights, tokenizer, processor, chat template.

The folder is what transformers' ``InternVLForConditionalGeneration`` and ``InternVLProcessor`` read, and what the
engine serves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from transformers import PreTrainedTokenizerFast

from epdjax.demo.recipe import IMAGE_SIZE, MAX_TILES, TOKENS_PER_TILE
from epdjax.models.checkpoint import export_hf
from epdjax.models.families.internvl.model import IMAGENET_MEAN, IMAGENET_STD

BICUBIC = 3


def preprocessor_config() -> dict[str, Any]:
    """The tiling of ``epdjax.demo.data.image_processor``, with the normalisation that the model does itself."""
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": MAX_TILES,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": BICUBIC,
    }


def export(model: nnx.Module, hf_config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write everything that serving or transformers needs of the demo model into `folder`."""
    export_hf(model, hf_config, folder)
    (folder / "model.safetensors").chmod(0o644)  # written for the owner only, but package data is for everyone
    tokenizer.save_pretrained(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for where_it_came_from in ("is_local", "local_files_only"):
        settings.pop(where_it_came_from, None)
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "preprocessor_config.json", preprocessor_config())
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": TOKENS_PER_TILE}
    _write(folder / "processor_config.json", processor)
    generation = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        "max_new_tokens": 64,
    }
    _write(folder / "generation_config.json", generation)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
