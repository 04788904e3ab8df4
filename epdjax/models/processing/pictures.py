"""Pictures through transformers' own image processors (PIL backend), stopped before they rescale and normalise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.processing.files import special_token

MAX_PIXELS = 2**28  # of a picture between two steps of processing


def load_image_processor(folder: Path, classes: Mapping[str, type], default: str) -> Any:
    """The image processor of a checkpoint folder.

    Args:
        folder: with ``processor_config.json`` or ``preprocessor_config.json``.
        classes: the PIL classes of the kinds that are supported, by the name in ``image_processor_type``.
        default: kind of a folder that names none.

    Raises:
        ValueError: there is none, it is of another kind, or it does not normalise bytes as the encoder will.
    """
    try:
        settings, _ = classes[default].get_image_processor_dict(folder)  # type: ignore[attr-defined]
        kind = (settings.get("image_processor_type") or default).removesuffix("Fast")
        if kind not in classes:
            raise ValueError(f"image_processor_type is {kind!r}; supported: {', '.join(classes)}")
        processor = classes[kind].from_pretrained(folder)  # type: ignore[attr-defined]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the image processor from {folder}: {error}") from error
    if not (processor.do_rescale and processor.do_normalize) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError("the image processor must rescale by 1/255 and normalise (do_rescale, do_normalize)")
    return processor


def refuse_enlarged(image: Image.Image, width: float, height: float) -> None:
    """Refuse a long, thin picture that the processor would blow up before it cuts it down.

    Args:
        image: as it came.
        width, height: in pixels, what it would be in between.

    Raises:
        ValueError: that is more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"a picture of {image.width} x {image.height} pixels is too long for its width: it would be enlarged to "
            f"{round(width)} x {round(height)}; crop it"
        )


def uint8_pictures(processor: Any, image: Image.Image, shape: tuple[int, int, int], **settings: Any) -> np.ndarray:
    """What the processor makes of one picture, uint8 ``[pictures, height, width, channels]``, each of `shape`.

    Transparency is composited on white, as HF does; every other mode becomes 8-bit RGB as PIL converts it.

    Raises:
        ValueError: a picture without pixels, or a processor whose pictures are not what the vision tower takes.
    """
    if min(image.size) < 1:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels has no content")
    # The processor is given a PIL image, never an array: it guesses the layout of arrays from their shape, wrongly for
    # pictures 1 or 3 pixels high.
    out = processor(image, do_convert_rgb=True, do_rescale=False, do_normalize=False, **settings)
    return checked(out["pixel_values"], shape)


def checked(pictures: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Pictures ``[channels, height, width]`` as one uint8 array with channels last.

    Raises:
        ValueError: they are not of `shape`, the one that the vision tower takes.
    """
    arrays = [np.asarray(picture) for picture in pictures]
    height, width, channels = shape
    if any(array.dtype != np.uint8 or array.shape != (channels, height, width) for array in arrays):
        made = ", ".join(sorted({f"{array.dtype} {array.shape}" for array in arrays}))
        raise ValueError(
            f"the image processor makes pictures of {made}, the vision tower takes uint8 {(channels, height, width)}: "
            "its size and crop_size must agree with vision_config.image_size"
        )
    return np.ascontiguousarray(np.stack(arrays).transpose(0, 2, 3, 1))


def media_token(tokenizer: Any, name: str, default: str, expected_id: int) -> str:
    """The added token that stands for media, which config.json must know by the same id.

    Raises:
        ValueError: the tokenizer has no such token, or another id for it.
    """
    token = special_token(tokenizer, name, default)
    if (found := int(tokenizer.convert_tokens_to_ids(token))) != expected_id:
        raise ValueError(f"config.json says {name} is {expected_id}, but the tokenizer gives {token!r} the id {found}")
    return token
