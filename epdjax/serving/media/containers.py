"""Opening containers of sound and video with FFmpeg (PyAV), so that a file cannot make it open anything else."""

import contextlib
import io
import time
from collections.abc import Iterator
from typing import Any

import av

from epdjax.serving.errors import MediaError, RequestError
from epdjax.serving.media.sources import Kind

# Playlists and the like, which FFmpeg would follow to files and addresses of the server, are not among these.
DEMUXERS = "aac,aiff,avi,flac,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,wav"
OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
MOST_LOST = 10  # one packet in so many may be one that cannot be decoded


@contextlib.contextmanager
def opened(data: bytes, kind: Kind, formats: str) -> Iterator[Any]:
    """A container over bytes, as ``av.container.InputContainer``.

    Raises:
        MediaError: whatever FFmpeg finds wrong with it, while it is open; `formats` says what to send instead.
    """
    try:
        with av.open(io.BytesIO(data), mode="r", options=OPTIONS) as container:
            yield container
    except RequestError:
        raise
    except Exception:
        # FFmpeg raises many things on broken data, and their texts show addresses of objects.
        raise MediaError(f"the {kind.noun} is damaged, incomplete or in an unknown format; send {formats}") from None


def decoded(packet: Any) -> list[Any] | None:
    """The frames that come out when a packet goes into its decoder; None: it cannot be decoded, and is lost."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return None


def check_lost(lost: int, packets: int, kind: Kind, formats: str) -> None:
    """Refuse a file of which too much is lost.

    Raises:
        MediaError: more than one in `MOST_LOST` of the packets could not be decoded.
    """
    if lost * MOST_LOST > packets:
        raise MediaError(
            f"the {kind.noun} is damaged: {lost} of its {packets} packets cannot be decoded; send the whole file, "
            f"as {formats}"
        )


def check_time(deadline: float, kind: Kind) -> None:
    """Give up what takes too long.

    Raises:
        MediaError: `deadline`, of ``time.monotonic()``, is past.
    """
    if time.monotonic() > deadline:
        raise MediaError(f"the {kind.noun} takes too long to read; send a shorter or smaller one")
