"""Pixels of every family are those of transformers' default image and video processors, as `record_pixels` has them.

Those are backed by torchvision, which weighs pixels with 16-bit integers: 2 grey levels are what its rounding explains.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from epdjax.models import config_of, family_of
from epdjax.models.media import MediaContext, MediaItem, Video
from epdjax.models.processing.pictures import resized
from tests.models.record_pixels import FILTERS, GOLDENS, RESIZED, SIZES, cases, frames, harsh, sizes

CASES = {name: (module, variant) for name, module, variant in cases()}
LEVELS = 2


def pixels(item: MediaItem, vision: Any) -> np.ndarray:
    """Of all units, channels first; Qwen-VL's as its processor lays patches out."""
    if "pixels" in item.units[0].inputs:
        return np.stack([unit.inputs["pixels"] for unit in item.units]).transpose(0, 3, 1, 2)
    patches = []
    for unit in item.units:
        cells = unit.inputs["patches"].reshape(-1, vision.cell, unit.inputs["patches"].shape[-1])
        patches.append((cells if unit.picks is None else cells[unit.picks]).reshape(-1, cells.shape[-1]))
    shape = (-1, vision.temporal_patch_size, vision.patch_size, vision.patch_size, 3)
    return np.concatenate(patches).reshape(shape).transpose(0, 4, 1, 2, 3)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.uint8 and ours.size == theirs.size
    difference = np.abs(ours.astype(int) - theirs.reshape(ours.shape).astype(int))
    assert difference.max() <= LEVELS


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    module, variant = CASES[name]
    golden = np.load(GOLDENS)
    processor = made(module, variant, tmp_path)
    vision = processor.config.vision
    for width, height in sizes(module.MODEL_TYPE):
        item = processor.prepare_image(Image.fromarray(harsh(width, height)))
        assert_close(pixels(item, vision), golden[f"{name}/{width}x{height}"])
    if f"{name}/two" in golden:
        pictures = [Image.fromarray(harsh(width, height)) for width, height in SIZES[:2]]
        items = [processor.prepare_image(picture, MediaContext(images=2)) for picture in pictures]
        assert_close(np.concatenate([pixels(item, vision) for item in items]), golden[f"{name}/two"])
    if f"{name}/video" in golden:
        item = processor.prepare_video(Video(frames(), np.arange(4) / 2, 2.0))
        assert_close(pixels(item, vision), golden[f"{name}/video"])


def made(module: ModuleType, variant: dict[str, Any], folder: Path) -> Any:
    """The processor of a family's variant."""
    module.make(folder, **variant)
    return family_of(folder).processor(folder, config_of(folder))


@pytest.mark.parametrize("name", FILTERS)
def test_resizing_is_that_of_torchvision(name: str) -> None:
    golden = np.load(GOLDENS)
    for i, ((width, height), (new_width, new_height)) in enumerate(RESIZED):
        assert_close(resized(harsh(width, height), new_height, new_width, FILTERS[name]), golden[f"resized/{name}/{i}"])


def test_what_need_not_be_resized_is_left_alone() -> None:
    picture = harsh(20, 10)
    assert resized(picture, 10, 20, FILTERS["lanczos"]) is picture
