"""The host's part of a request before the scheduler sees it: media are decoded, resized and cut by a few workers."""

import heapq
from collections.abc import Callable

from epdjax.serving.request import RequestSpec


class Host:
    """Workers that prepare media, first come first served.

    Args:
        seconds: what a request's media take one of them.
        workers: how many there are.
    """

    def __init__(self, seconds: Callable[[RequestSpec], float], workers: int):
        self._seconds, self._free_at = seconds, [0.0] * max(1, workers)

    def ready(self, spec: RequestSpec, now: float) -> float:
        """When a request that comes now is prepared."""
        seconds = self._seconds(spec)
        if not seconds:
            return now
        at = max(now, heapq.heappop(self._free_at)) + seconds
        heapq.heappush(self._free_at, at)
        return at
