"""Pictures through transformers' own image processors (PIL backend), stopped before they rescale and normalise.

Their sizes, tiles and crops are taken as they are. Resizing is done here, so that pixels are within 2 grey levels of
transformers' default processors (torchvision backend), whatever version of Pillow is there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size

from epdjax.models.processing.files import special_token

MAX_PIXELS = 2**28  # of a picture between two steps of processing


def resized(pixels_hwc: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """A picture in another size, as torchvision makes it: first across, then down, with bytes in between.

    The order shows, because bytes are clipped in between. Pillow takes this one up to version 12; from 13 on, it goes
    down first for some sizes.

    Args:
        pixels_hwc: uint8 ``[height, width, channels]``.
        height, width: of the new picture, in pixels.
        resample: PIL's number of the filter.
    """
    old_height, old_width = pixels_hwc.shape[:2]
    if (height, width) == (old_height, old_width):
        return pixels_hwc
    if resample == Image.Resampling.NEAREST:  # torchvision's ``NEAREST_EXACT``
        return pixels_hwc[_nearest(old_height, height)][:, _nearest(old_width, width)]
    picture, by = Image.fromarray(np.ascontiguousarray(pixels_hwc)), Image.Resampling(resample)
    return np.asarray(picture.resize((width, old_height), by).resize((width, height), by))


def _nearest(old: int, new: int) -> np.ndarray:
    """Which of `old` pixels is nearest to the middle of each of `new`, in the float32 arithmetic of torch."""
    middles = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new))
    return np.minimum(middles.astype(np.int64), old - 1)


class _Resizer(PilBackend):
    """transformers' PIL backend, resizing by `resized`."""

    def resize(
        self, image: np.ndarray, size: Any, resample: Any = None, reducing_gap: int | None = None, **kwargs: Any
    ) -> np.ndarray:
        """A uint8 picture ``[channels, height, width]`` in another size.

        Raises:
            ValueError: a `size` that is neither height and width nor a shortest edge alone.
        """
        if size.height and size.width:
            target = (size.height, size.width)
        elif size.shortest_edge and not size.longest_edge:
            target = get_resize_output_image_size(
                image, size.shortest_edge, default_to_square=False, input_data_format="channels_first"
            )
        else:
            raise ValueError(f"the image processor's size is {size}: it must be height and width, or shortest_edge")
        by = Image.Resampling.BILINEAR if resample is None else resample
        return resized(image.transpose(1, 2, 0), *target, by).transpose(2, 0, 1)


def like_torchvision(processor_class: Any) -> Any:
    """A PIL-backed image processor of transformers, made to resize as the torchvision-backed one does."""
    # Behind the class in the order of bases, before the backend: some choose a size and leave the rest to their base.
    return type(processor_class.__name__, (processor_class, _Resizer), {"__doc__": processor_class.__doc__})


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
