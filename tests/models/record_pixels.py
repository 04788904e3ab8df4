"""Record what transformers' default image and video processors make of pictures, for tests that have no torchvision.

``python -m tests.models.record_pixels``, with ``torch==2.14.1 torchvision==0.29.1`` installed, writes
``tests/goldens/pixels.npz``: of every family in transformers the uint8 pixels of some pictures and a video, and what
torchvision makes of a picture by every filter that it shares with PIL.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from tests.models.families import all_families

GOLDENS = Path(__file__).parent.parent / "goldens" / "pixels.npz"
VIDEO_PROCESSORS = {
    "internvl": "InternVLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
}
SIZES = ((70, 30), (25, 90), (9, 11))  # of pictures, in pixels: shrunk in both directions or in one, and enlarged
VARIANTS = {"gemma3": 2, "llava": 3, "llava_onevision": 2}  # how many treat pictures differently; else one
PAN_AND_SCAN = {  # as Gemma3Processor calls its image processor
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
RESIZED = (((60, 40), (23, 17)), ((60, 40), (23, 61)), ((12, 50), (40, 20)), ((9, 7), (33, 30)), ((31, 30), (31, 11)))


def harsh(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Black and white pixels, uint8 ``[height, width, 3]``: filters that overshoot clip as much as they can."""
    return (np.random.default_rng(seed).integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


def sizes(model_type: str) -> tuple[tuple[int, int], ...]:
    """Of the pictures of a family: Gemma 3 crops only large ones."""
    return (*SIZES, (700, 300)) if model_type == "gemma3" else SIZES


def frames() -> np.ndarray:
    """Of a video, uint8 ``[frames, height, width, 3]``."""
    return np.stack([harsh(40, 26, seed) for seed in range(4)])


def cases() -> Iterator[tuple[str, ModuleType, dict[str, Any]]]:
    """Name, module and variant of all whose pictures transformers processes, alike ones once."""
    for model_type, module in all_families().items():
        if not hasattr(module, "reference") or model_type == "qwen2_audio":
            continue
        for i, (name, variant) in enumerate(module.VARIANTS.items()):
            if i < VARIANTS.get(model_type, 1):
                yield f"{model_type}/{name}", module, variant


def _theirs(model_type: str, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    import transformers
    from transformers.image_processing_backends import TorchvisionBackend

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert isinstance(processor, TorchvisionBackend), type(processor)
    raw: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    options = {"crop_to_patches": True} if model_type == "internvl" else {}
    if model_type == "gemma3":
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        given = {key: value for key, value in settings.items() if "pan_and_scan" in key and value is not None}
        options = PAN_AND_SCAN | given
    for width, height in sizes(model_type):
        out = processor(Image.fromarray(harsh(width, height)), **options, **raw)
        yield f"{width}x{height}", out["pixel_values"].numpy()
    if model_type == "llava_onevision":
        both = [[Image.fromarray(harsh(width, height)) for width, height in SIZES[:2]]]
        yield "two", processor(both, **raw)["pixel_values"].numpy()
    if name := VIDEO_PROCESSORS.get(model_type):
        settings = {}
        if not name.startswith("Qwen"):
            size = processor.size
            settings = {"size": {"height": size.height, "width": size.width}, "resample": processor.resample}
        made = getattr(transformers, name).from_pretrained(folder, **settings)
        out = made(videos=[frames()], do_sample_frames=False, **raw)
        yield "video", out["pixel_values_videos"].numpy()


def record() -> None:
    """Write the file."""
    import torch
    from torchvision.transforms.v2 import functional
    from transformers.image_processing_backends import pil_torch_interpolation_mapping as interpolations

    arrays: dict[str, np.ndarray] = {}
    for name, module, variant in cases():
        with tempfile.TemporaryDirectory() as folder:
            module.make(Path(folder), **variant)
            for what, pixels in _theirs(module.MODEL_TYPE, Path(folder)):
                assert pixels.min() >= 0 and pixels.max() <= 255 and (pixels == pixels.astype(np.uint8)).all()
                arrays[f"{name}/{what}"] = pixels.astype(np.uint8)
    for name, number in FILTERS.items():
        for i, ((width, height), (new_width, new_height)) in enumerate(RESIZED):
            tensor = torch.from_numpy(harsh(width, height).transpose(2, 0, 1).copy())
            by = interpolations[Image.Resampling(number)]
            made = functional.resize(tensor, [new_height, new_width], interpolation=by, antialias=True)
            arrays[f"resized/{name}/{i}"] = made.numpy().transpose(1, 2, 0)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == "__main__":
    record()
    print(f"recorded {GOLDENS}, {GOLDENS.stat().st_size} bytes")
