"""Any picture as plain 8-bit RGB: turned as its EXIF says, on white where it is transparent."""

from typing import Any

import numpy as np
from PIL import Image

from epdjax.serving.errors import MediaError

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TOP = {"1": 1, "L;2": 3, "L;4": 15}  # the largest level of grey PNGs with less than 8 bits, by raw mode


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as RGB, itself if it is that already.

    Pictures of one number for each pixel:

    * of 16 bits (modes ``I;16``, as of a PNG): divided by 256;
    * of mode ``I``, whose 32 bits have no full scale: taken as 16 bits if a value is beyond 255, else as 8;
    * of mode ``F``, which has none either: levels from 0 to 255.

    Raises:
        MediaError: numbers of mode ``I`` or ``F`` that are none of these.
    """
    clear = _transparent_colour(picture)  # before the pixels are loaded
    picture.load()
    turn = _orientation(picture)
    if type(picture) is Image.Image and picture.mode == "RGB" and "transparency" not in picture.info and turn is None:
        return picture
    if picture.mode.startswith(("I", "F")):
        picture = _gray(picture, clear)
    elif clear != picture.info.get("transparency"):
        picture = picture.copy()
        picture.info["transparency"] = clear
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size, (255, 255, 255))
        picture.paste(rgba, mask=rgba.getchannel("A"))
    else:
        picture = picture.convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info.clear()
    return picture


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION_TAG, 1))
    except Exception:
        # Broken metadata are no reason to refuse a whole picture: viewers ignore them too.
        return None


def _transparent_colour(picture: Image.Image) -> Any:
    """The transparent colour of a picture, in the levels that its pixels have once they are loaded.

    PIL brings pixels of other depths to 8 bits and leaves the colour as the file has it.
    """
    colour = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)  # what is not loaded yet
    raw_mode = tiles[0][3] if tiles else None
    if raw_mode in TOP and isinstance(colour, int):
        return min(colour, TOP[raw_mode]) * 255 // TOP[raw_mode]
    if raw_mode == "RGB;16B" and isinstance(colour, tuple):
        return tuple(level >> 8 for level in colour)
    return colour


def _gray(picture: Image.Image, clear: Any) -> Image.Image:
    """A picture of one number for each pixel, of more than 8 bits: PIL itself would clip it at 255."""
    levels = np.asarray(picture)
    low, high = levels.min(), levels.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 255) or 0 < high <= 1:
            raise MediaError(
                "a picture of floating-point numbers must have levels from 0 to 255; scale it, or convert it to 8 bits"
            )
        gray = levels.astype(np.uint8)
    elif low < 0 or high > 0xFFFF:
        raise MediaError("a picture of 32-bit integers must have levels from 0 to 65535; convert it to 8 bits")
    else:
        gray = levels.astype(np.uint8) if picture.mode == "I" and high <= 255 else (levels >> 8).astype(np.uint8)
    if isinstance(clear, int):
        alpha = np.where(levels == clear, 0, 255).astype(np.uint8)
        return Image.fromarray(np.stack([gray, alpha], -1))
    return Image.fromarray(gray)
