"""From pixels to the patches of a Qwen-VL encode unit, on the host; uint8 all the way.

Reference: HF ``Qwen2VLImageProcessorPil``, ``Qwen2VLVideoProcessor`` (patch order), ``transformers.vision_utils``
(windows, interpolated positions).
"""

import numpy as np

from epdjax.models.families.qwen_vl.vit import QwenVisionConfig
from epdjax.models.media import EncodeUnit


def encode_unit(frames_fhwc: np.ndarray, config: QwenVisionConfig) -> EncodeUnit:
    """One encode unit.

    Args:
        frames_fhwc: uint8, as many frames as a patch has, sides whole numbers of merge squares.
    """
    m, p = config.merge_size, config.patch_size
    f, height, width, channels = frames_fhwc.shape
    rows, columns = height // p, width // p
    cells = frames_fhwc.reshape(f, rows // m, m, p, columns // m, m, p, channels)
    cells = cells.transpose(1, 4, 2, 5, 0, 3, 6, 7).reshape(rows * columns // config.cell, config.cell, -1)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).astype(np.int32)
    grid = grid.reshape(rows // m, m, columns // m, m, 2).swapaxes(1, 2).reshape(-1, config.cell, 2)
    tokens, picks = len(cells), None
    valid = np.ones((tokens, config.cell), bool)
    if config.window:
        slots, picks = window_slots(rows // m, columns // m, config.window)
        filled = slots >= 0
        cells, grid = (np.where(filled[:, None, None], x[slots], 0).astype(x.dtype) for x in (cells, grid))
        valid = np.broadcast_to(filled[:, None], (len(slots), config.cell))
    inputs = {
        "patches": np.ascontiguousarray(cells.reshape(-1, config.patch_values)),
        "grid": grid.reshape(-1, 2),
        "valid": valid.reshape(-1).copy(),
    }
    if config.position_side:
        inputs["position_rows"], inputs["position_weights"] = position_taps(
            grid.reshape(-1, 2), rows, columns, config.position_side
        )
    return EncodeUnit(inputs, size=len(inputs["valid"]), tokens=tokens, picks=picks)


def window_slots(rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay a grid of MM tokens out window by window.

    Returns:
        (for each slot the token in it, row-major, or -1; int32 ``[tokens]``, the slot of each token). Windows follow
        one another row-major, and so do the slots of a window; those over the right and lower edge stay empty.
    """
    down, across = -(-rows // side), -(-columns // side)
    tokens = np.full((down * side, across * side), -1, np.int64)
    tokens[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    slots = tokens.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1)
    filled = np.flatnonzero(slots >= 0)
    picks = np.empty(rows * columns, np.int32)
    picks[slots[filled]] = filled
    return slots, picks


def position_taps(grid_p2: np.ndarray, rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """How a square table of positions is interpolated to a grid, corner on corner, in float32.

    Returns:
        (rows of the flattened table int32 ``[p, 4]``, their weights float32 ``[p, 4]``).
    """
    low, high, share = [], [], []
    for axis, size in enumerate((rows, columns)):
        at = grid_p2[:, axis].astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        floor = np.floor(at)
        low.append(floor.astype(np.int32))
        high.append(np.minimum(low[-1] + 1, side - 1))
        share.append(at - floor)
    (top, left), (bottom, right), (y, x) = low, high, share
    taps = np.stack([top * side + left, top * side + right, bottom * side + left, bottom * side + right], -1)
    weights = np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], -1)
    return taps.astype(np.int32), weights.astype(np.float32)
