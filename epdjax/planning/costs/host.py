"""What the host takes of a request before the scheduler has it: its media are decoded, resized and cut."""

import dataclasses
from collections.abc import Mapping, Sequence

from epdjax.planning.machine import Host


@dataclasses.dataclass(frozen=True)
class HostCosts:
    """Preparing requests on the host.

    A request is prepared by one worker, its pictures one after the other, as the engine's `preprocess_threads` do it.

    Attributes:
        megapixel_s: of a million pixels of a picture as it comes. picture_s: of any picture besides. request_s: of any
            request, from the client to the scheduler and, with the first token, back.
        workers: requests that are prepared at the same time.
    """

    megapixel_s: float
    picture_s: float = 0.0
    workers: int = 4
    request_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("megapixel_s", "picture_s", "request_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")

    def host(self, pixels: Mapping[str, Sequence[float]]) -> Host:
        """The host of requests with such pictures, by the requests' names."""
        return Host(lambda spec: self.preprocess_s(*pixels[spec.request_id]), self.workers)

    def preprocess_s(self, *pixels: float) -> float:
        """Of a request with pictures of so many pixels each, while no other request is in the way."""
        return self.request_s + self.picture_s * len(pixels) + self.megapixel_s * sum(pixels) / 1e6
