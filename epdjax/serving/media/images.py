"""Pictures: decoded behind bounds, and brought to plain RGB.

The EXIF orientation is applied, transparency put on white, 16 bits brought to 8, the first frame of an animation taken.
Nothing is resized.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from epdjax.serving.errors import MediaError, RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.given import array_picture, named_path
from epdjax.serving.media.rgb import to_rgb
from epdjax.serving.media.sources import PICTURE, Reserve, check_size, no_reserve, read

FORMATS = "PNG, JPEG, WebP, GIF or BMP"


def load_image(
    source: object, limits: ServingLimits, *, deadline: float | None = None, reserve: Reserve = no_reserve
) -> Image.Image:
    """Makes an RGB picture of what a request gives for one.

    Args:
        source: a `data:` URL; an http(s) URL, if remote media are allowed; a `file:` URL or a path, if it lies below
            the allowed folder (relative paths start there), as a string or a ``pathlib.Path``; the bytes of an encoded
            picture; a picture; or an array uint8 ``[height, width, 3]``, ``[height, width, 4]`` or ``[height, width]``.
        limits: what is allowed.
        deadline: `time.monotonic()` at which to give up a download.
        reserve: told of the bytes of its pixels.

    Raises:
        MediaError: says what to change, and never shows addresses or paths of the server.
    """
    if isinstance(source, np.ndarray):
        source = array_picture(source)
    if isinstance(source, Image.Image):
        picture = source
        _check_size(picture.width, picture.height, limits)
        return _guarded(lambda: to_rgb(picture))
    return _decode(read(named_path(source), PICTURE, limits, deadline), limits, reserve)


def _plugin(data: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    # By content, not by name; and one plugin rather than `Image.open`, which tries several and holds pictures to a
    # process-wide pixel limit of its own, with warnings.
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    return None


def _decode(data: bytes, limits: ServingLimits, reserve: Reserve) -> Image.Image:
    plugin = _plugin(data)
    if plugin is None:
        raise MediaError(f"the data is not a picture in a known format; send {FORMATS}")

    def decode() -> Image.Image:
        with plugin(io.BytesIO(data)) as picture:
            # From the header alone: a bomb is refused before a pixel of it exists.
            _check_size(picture.width, picture.height, limits)
            reserve(3 * picture.width * picture.height)
            return to_rgb(picture)

    return _guarded(decode)


def _guarded(decode: Callable[[], Image.Image]) -> Image.Image:
    try:
        return decode()
    except RequestError:
        raise
    except Exception:
        # Decoders raise nearly anything on broken data, and their texts show addresses of objects.
        raise MediaError(f"the picture is damaged or incomplete; send the whole file, as {FORMATS}") from None


def _check_size(width: int, height: int, limits: ServingLimits) -> None:
    check_size(width, height, PICTURE, limits)
    if max(width, height) > limits.max_image_aspect_ratio * min(width, height):
        raise MediaError(
            f"the picture is {width}x{height}; the longer side may be at most {limits.max_image_aspect_ratio:g} times "
            "the shorter: crop it"
        )
