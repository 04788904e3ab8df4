"""What LLaVA-OneVision does to the features of tiles and frames, as weights on them.

An item's tokens are those of its units in order, each ``side * side`` patches, row by row, and one newline.
Reference: HF ``LlavaOnevisionModel.pack_image_features`` and ``apply_pooling``.
"""

import math

import numpy as np

from epdjax.models.media import Mix

TAPS = 4  # of bilinear interpolation


def tiles_mix(size: tuple[int, int], grid: tuple[int, int], side: int, max_tiles: int) -> Mix:
    """A picture's prompt tokens: the small copy's, then the tiles' as one picture, with a newline after each row.

    Args:
        size: (height, width) of the picture in pixels, before it was resized and padded.
        grid: (rows, columns) of tiles; they follow the small copy, row by row.
        side: patches along a tile.
        max_tiles: a picture of many more tokens than as many tiles make is shrunk to that.

    Raises:
        ValueError: shrinking leaves nothing.
    """
    stride, (rows, columns) = side**2 + 1, grid
    tiles = 1 + np.arange(rows * columns).reshape(rows, 1, columns, 1)
    patches = np.arange(side**2).reshape(1, side, 1, side)
    at_hw = _without_padding((tiles * stride + patches).reshape(rows * side, columns * side), size)
    height, width = at_hw.shape
    ratio = math.sqrt(height * width / (max_tiles * side**2))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
        if not height * width:
            raise ValueError(f"a picture of {size[1]} x {size[0]} pixels is too long for this model")
        body = _resized(at_hw, height, width)
    else:
        body = _alone(at_hw.reshape(-1))
    newlines = _alone(np.full(height, side**2))
    lines = [
        np.concatenate([text.reshape(height, width, TAPS), newline[:, None]], axis=1).reshape(-1, TAPS)
        for text, newline in zip(body, newlines, strict=True)
    ]
    small = _alone(np.arange(side**2))
    return Mix(*(np.concatenate(pair) for pair in zip(small, lines, strict=True)))


def frames_mix(frames: int, side: int) -> Mix:
    """A video's prompt tokens: each frame's, resized to half its side, and one newline at the end."""
    half = math.ceil(side / 2)
    rows, weights = _resized(np.arange(side**2).reshape(side, side), half, half)
    starts = np.repeat(np.arange(frames) * (side**2 + 1), len(rows))[:, None]
    newline_rows, newline_weights = _alone(np.array([side**2]))
    return Mix(
        np.concatenate([np.tile(rows, (frames, 1)) + starts, newline_rows]).astype(np.int32),
        np.concatenate([np.tile(weights, (frames, 1)), newline_weights]),
    )


def _without_padding(at_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a picture's patches that is not the padding added around it (HF ``unpad_image``)."""
    (height, width), (rows, columns) = size, at_hw.shape
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return at_hw[cut : rows - cut]
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return at_hw[:, cut : columns - cut]


def _alone(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, weights) ``[n, TAPS]`` of tokens taken as they are."""
    weights = np.zeros((len(at), TAPS), np.float32)
    weights[:, 0] = 1
    return np.repeat(at[:, None], TAPS, axis=1).astype(np.int32), weights


def _resized(at_hw: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, weights) ``[height * width, TAPS]`` of bilinear interpolation (torch, ``align_corners=False``)."""
    y0, y1, below = _taps(at_hw.shape[0], height)
    x0, x1, right = _taps(at_hw.shape[1], width)
    rows = [at_hw[np.ix_(y, x)] for y in (y0, y1) for x in (x0, x1)]
    weights = [np.outer(v, h) for v in (1 - below, below) for h in (1 - right, right)]
    flat = (np.stack(pieces, axis=-1).reshape(-1, TAPS) for pieces in (rows, weights))
    return next(flat).astype(np.int32), next(flat).astype(np.float32)


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the two places each target is between, and how far it is towards the second, in float32."""
    at = np.float32(source / target) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    at = np.maximum(at, 0)
    first = at.astype(np.int64)
    return first, np.minimum(first + 1, source - 1), at - first
