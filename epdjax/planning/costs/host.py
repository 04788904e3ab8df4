"""What the host takes to make a request's media ready: decoding, resizing, cutting."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class HostCosts:
    """Preparing pictures on the host.

    A request is prepared by one worker, its pictures one after the other, as the engine's `preprocess_threads` do it.

    Attributes:
        megapixel_s: of a million pixels of a picture as it comes. picture_s: of any picture besides.
        workers: requests that are prepared at the same time.
    """

    megapixel_s: float
    picture_s: float = 0.0
    workers: int = 4

    def __post_init__(self) -> None:
        if self.megapixel_s < 0 or self.picture_s < 0:
            raise ValueError(
                f"seconds must not be negative: megapixel_s {self.megapixel_s}, picture_s {self.picture_s}"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")

    def preprocess_s(self, *pixels: float) -> float:
        """Of a request with pictures of so many pixels each, while no other request is in the way."""
        return self.picture_s * len(pixels) + self.megapixel_s * sum(pixels) / 1e6
