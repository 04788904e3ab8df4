"""Looking things up between measured points: rungs of ladders, straight lines."""

import bisect
from collections.abc import Sequence


def rung(ladder: Sequence[int], size: int) -> int:
    """The smallest entry of an ascending ladder that holds `size`; beyond the last, `size` itself."""
    at = bisect.bisect_left(ladder, size)
    return ladder[at] if at < len(ladder) else size


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` on straight lines through ascending `points`: before the first its own value, beyond the last in
    proportion to `x`."""
    if x <= points[0][0]:
        return points[0][1]
    last_x, last = points[-1]
    if x >= last_x:
        return last * x / last_x
    at = bisect.bisect_left(points, (x, -float("inf")))
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(value at 0, slope) of the straight line through the outermost points, neither of them negative: where the
    measurement says otherwise the line goes through 0, or is flat, and through the mean of those points."""
    (x0, y0), (x1, y1) = min(points), max(points)
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    middle_x, middle = (x0 + x1) / 2, (y0 + y1) / 2
    slope = max(0.0, slope)
    if middle < slope * middle_x:
        return 0.0, middle / middle_x
    return middle - slope * middle_x, slope
