"""How a video wants to be held: phones record as the sensor lies, and write down how to turn the frames."""

from typing import Any

import numpy as np

# Of a display matrix, in units of 1/65536: what counts as nothing, in parts of the larger numbers beside it.
NOTHING = 0.01


def turned(pixels_hwc: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A frame as it is to be shown.

    Args:
        pixels_hwc: as it was decoded.
        matrix: see `display_matrix`. It says where the point ``(x, y)`` of the frame is shown: at ``(a x + c y, b x +
            d y)``. Multiples of 90 degrees and mirror images are made; by another angle nothing is turned.
    """
    if matrix is None:
        return pixels_hwc
    (a, b), (c, d) = matrix
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) < NOTHING * straight:
        across, down = a, d
    elif max(abs(a), abs(d)) < NOTHING * crossed:
        pixels_hwc = pixels_hwc.swapaxes(0, 1)
        across, down = c, b
    else:
        return pixels_hwc
    return np.ascontiguousarray(pixels_hwc[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])


def display_matrix(frame: Any) -> np.ndarray | None:
    """The matrix ``[[a, b], [c, d]]`` of a frame's display matrix, float64; None: it has none."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return None
    return np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].reshape(2, 2).astype(np.float64)
