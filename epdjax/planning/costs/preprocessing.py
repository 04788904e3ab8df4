"""How fast the host makes prompts with pictures ready: the model's own processor, timed."""

import io
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.registry import Family
from epdjax.planning.costs.host import HostCosts
from epdjax.serving.content import content_keys
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.images import load_image

PICTURES = ((313, 234), (787, 444), (4032, 3024))  # the EPD paper's
BLOCK = 16  # tokens


def measure_preprocessing(
    family: Family,
    model: Any,
    checkpoint: Path,
    workers: int,
    pictures: tuple[tuple[int, int], ...] = PICTURES,
    repeats: int = 3,
) -> HostCosts | None:
    """Time prompts with a JPEG each, from decoding it to hashing its units, and lay a line through the times over its
    pixels that is off by equal shares of small ones and large ones.

    Args:
        family, model: a family and a config of it. checkpoint: a folder with the files of its processor.
        workers: see `HostCosts`.
        pictures: width and height of those that are timed, two at least.
        repeats: timed, after one that is not; the median counts.

    Returns:
        None for a model that takes no pictures.

    Raises:
        ValueError: the folder's processor cannot be loaded.
    """
    processor = family.processor(checkpoint, model)
    if "image" not in processor.placeholders:
        return None
    megapixels, medians = [], []
    for width, height in pictures:
        data, seconds = _jpeg(width, height), []
        for _ in range(1 + repeats):
            began = time.perf_counter()
            parts = [{"type": "image", "image": load_image(data, ServingLimits())}, {"type": "text", "text": "what"}]
            content_keys(processor.prompt([{"role": "user", "content": parts}]), BLOCK)
            seconds.append(time.perf_counter() - began)
        megapixels.append(width * height / 1e6)
        medians.append(statistics.median(seconds[1:]))
    weights = 1 / np.array(medians)
    slope, fixed = (max(0.0, float(some)) for some in np.polyfit(megapixels, medians, 1, w=weights))
    return HostCosts(slope, fixed, workers)


def _jpeg(width: int, height: int) -> bytes:
    """A picture that compresses about as photographs do: a gradient under a little noise."""
    across = np.linspace(0, 200, width).astype(np.uint8)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 24, (height, width, 3), np.uint8)
    made = io.BytesIO()
    Image.fromarray(across + noise).save(made, "JPEG", quality=90)
    return made.getvalue()
