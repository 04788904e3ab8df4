"""Media parts of messages to decoded media: fetched, decoded in another process, and counted."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from epdjax.models.media import Audio, Video
from epdjax.serving.errors import MediaError, RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.audio import load_audio
from epdjax.serving.media.decoder_pool import DecoderPool, ReserveBy
from epdjax.serving.media.given import named_path
from epdjax.serving.media.images import load_image
from epdjax.serving.media.parts import MediaPart
from epdjax.serving.media.sources import DataURL, is_data_url, read
from epdjax.serving.media.video import load_video

Media = Image.Image | Video | Audio


class MediaNeeds(Protocol):
    """What a model wants of media; every `models.processing.base.Processor` says it."""

    @property
    def placeholders(self) -> Mapping[str, str]:
        """Its keys are the kinds of media that the model takes."""
        ...

    @property
    def sampling_rate(self) -> int: ...

    def sample_frames(self, frames: int, fps: float) -> np.ndarray: ...


def is_elsewhere(part: MediaPart) -> bool:
    """Whether its data have to be read from a file or another host first."""
    return isinstance(part.source, PurePath) or (isinstance(part.source, str) and not is_data_url(part.source))


def fetched(part: MediaPart, limits: ServingLimits, deadline: float) -> MediaPart:
    """A part with its data, wherever they were.

    Raises:
        MediaError: names the part.
    """
    if not is_elsewhere(part):
        return part
    with _named(part):
        return MediaPart(part.kind, read(named_path(part.source), part.noun, limits, deadline), part.path)


class MediaLoader:
    """Decodes the media of one request, one after the other.

    Args:
        pool: where encoded media are decoded. Decoded ones are only checked, here.
        needs: of the model.
        deadline: ``time.monotonic()`` at which decoding is given up, for all of them.
    """

    def __init__(self, pool: DecoderPool, limits: ServingLimits, needs: MediaNeeds, deadline: float):
        self._pool, self._limits, self._needs, self._deadline = pool, limits, needs, deadline
        self._pixels_left = limits.max_request_pixels

    def load(self, part: MediaPart, reserve: ReserveBy) -> Media:
        """Decode one part, whose data are here.

        Args:
            reserve: told of the bytes it takes, before they are there; raises where there is no room for them.

        Raises:
            RequestError: names the part, and says what to change.
        """
        with _named(part):
            media = self._decode(part, reserve)
            self._spend(media)
            return media

    def _decode(self, part: MediaPart, reserve: ReserveBy) -> Media:
        needs, source, limits = self._needs, part.source, self._limits
        if isinstance(source, (str, DataURL, bytes, bytearray, memoryview)):
            data = source if isinstance(source, (str, DataURL)) else bytes(source)
            hooks: dict[str, Any] = {"sample": needs.sample_frames} if part.kind == "video" else {}
            hooks |= {"rate": needs.sampling_rate} if part.kind == "audio" else {}
            return self._pool.load(part.noun, data, deadline=self._deadline, reserve=reserve, **hooks)
        # Decoded already: its pixels are there, and are the caller's.
        if part.kind == "image":
            return load_image(source, limits, deadline=self._deadline)
        if part.kind == "audio":
            return load_audio(source, limits, needs.sampling_rate, deadline=self._deadline)
        return load_video(source, limits, needs.sample_frames, deadline=self._deadline)

    def _spend(self, media: Media) -> None:
        """Count the pixels of a request's pictures and frames."""
        if isinstance(media, Audio):
            return
        self._pixels_left -= media.frames.size // 3 if isinstance(media, Video) else media.width * media.height
        if self._pixels_left < 0:
            most = self._limits.max_request_pixels
            raise MediaError(
                f"the request's pictures have more than {most} pixels together; send fewer or smaller pictures"
            )


@contextlib.contextmanager
def _named(part: MediaPart) -> Iterator[None]:
    """Errors inside say which part they are about."""
    try:
        yield
    except RequestError as error:
        error.name(part.path)
        raise
