"""How MiniCPM-V cuts pictures: sizes, grids and positions, as plain functions of numbers.

Reference: the image processor that OpenBMB publishes with MiniCPM-V 2.6.
"""

import dataclasses
import math

import numpy as np

Size = tuple[int, int]
"""(width, height), or (columns, rows)."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """What becomes of a picture.

    Attributes:
        whole: pixels that the whole picture is resized to.
        grid: columns and rows of its slices; None: it is not sliced.
        slices: pixels that it is resized to before it is sliced; None: it is not.
    """

    whole: Size
    grid: Size | None = None
    slices: Size | None = None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Pixels of every unit: the whole picture, then the slices row by row."""
        if self.grid is None or self.slices is None:
            return (self.whole,)
        (columns, rows), (width, height) = self.grid, self.slices
        return (self.whole, *((width // columns, height // rows) for _ in range(columns * rows)))


def cut(width: int, height: int, resolution: int, patch: int, most: int) -> Cut:
    """How a picture is cut.

    Args:
        width, height: in pixels.
        resolution: a unit gets about ``resolution**2`` pixels.
        patch: side of a patch; every unit is a whole number of them.
        most: slices at most, the whole picture not counted.
    """
    whole = _fit(width, height, resolution, patch)
    grid = _grid(width, height, resolution, most)
    if grid is None:
        return Cut(whole)
    columns, rows = grid
    slice_width, slice_height = _fit(
        _multiple(width, columns) / columns, _multiple(height, rows) / rows, resolution, patch
    )
    return Cut(whole, grid, (slice_width * columns, slice_height * rows))


def _multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)


def _fit(width: float, height: float, resolution: int, patch: int) -> Size:
    """The size in whole patches, of the same shape and about ``resolution**2`` pixels."""
    aspect = width / height
    fitted_height = int(resolution / math.sqrt(aspect))
    return _multiple(int(fitted_height * aspect), patch), _multiple(fitted_height, patch)


def _grid(width: int, height: int, resolution: int, most: int) -> Size | None:
    """About as many slices as the picture's area asks for, of a shape as near to a square as can be."""
    wanted = min(math.ceil(width * height / resolution**2), most)
    if wanted <= 1:
        return None
    counts = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= most]
    grids = [(columns, n // columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    # The first of several equally good ones: fewer slices, then fewer columns.
    return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))


def table_rows(patches: int, side: int) -> np.ndarray:
    """Rows (or columns) of the position table that the `patches` patches along an axis stand for, int ``[patches]``.

    Patch ``i`` stands for row ``i * side // patches`` of the table's `side`, but the reference works that out in
    float32 and in steps of eight patches, so that a patch exactly on a boundary sometimes falls below it. Those
    roundings are repeated here.
    """
    step = np.float64(np.float32(1) / np.float32(patches))
    index = np.arange(patches)
    block = index - index % 8
    fractions = ((block * step).astype(np.float32) + (index - block) * step).astype(np.float32)
    first = 1 / side
    boundaries = (first + first * np.arange(math.ceil((1 - first) / first))).astype(np.float32)
    return np.searchsorted(boundaries, fractions, side="right")
