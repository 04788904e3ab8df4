"""A decoder process, ``python -m epdjax.serving.media.decoder_process FD``: decodes one file after another.

It is a process because a decoder in C cannot be interrupted, may crash, and may take any memory: here it is ended at
its deadline by the clock, and costs the server nothing but this one file. It must not import JAX or transformers,
which take seconds and hundreds of megabytes; `decoder_pool` is the server's side.
"""

import contextlib
import dataclasses
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from epdjax.models.media import Audio, Video
from epdjax.serving.errors import RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.audio import load_audio
from epdjax.serving.media.decoder_wire import Closed, Wire
from epdjax.serving.media.images import load_image
from epdjax.serving.media.memory_files import contents, file_of_array
from epdjax.serving.media.video import load_video

NICENESS = 5  # decoding gives way to serving: where both want a core, it gets a quarter
ADDRESS_SPACE = 6 << 30  # bytes: twice the pixels of the largest request, and what the libraries map


class Job:
    """One file to decode, and a way to ask the server while it is decoded.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        source: what the request gave for it: a data URL, or bytes.
        deadline: ``time.monotonic()`` at which this process is ended.
        rate: of sound, samples per second that the model takes.
    """

    def __init__(self, wire: Wire, message: dict[str, Any], source: str | bytes, limits: ServingLimits):
        self._wire = wire
        self.limits = limits
        self.kind, self.source = str(message["kind"]), source
        self.rate = int(message.get("rate") or 0)
        self.deadline = time.monotonic() + float(message["seconds"])

    def reserve(self, size: int) -> None:
        """Ask for `size` bytes for what is being decoded; where there are none, the server ends this process."""
        self._ask({"reserve": size})

    def sample(self, frames: int, fps: float) -> np.ndarray:
        """Ask which frames of a video the model wants."""
        return np.asarray(self._ask({"frames": frames, "fps": fps})["indices"], np.int64)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._wire.send(question)
        return self._wire.receive()[0]


Decode = Callable[[Job], "Any"]


def decode(job: Job) -> Any:
    """The decoded media of a job: a picture, a `Video` or an `Audio`."""
    limits = job.limits
    hooks: dict[str, Any] = {"deadline": job.deadline, "reserve": job.reserve}
    if job.kind == "image":
        return load_image(job.source, limits, **hooks)
    if job.kind == "audio":
        return load_audio(job.source, limits, job.rate, **hooks)
    return load_video(job.source, limits, job.sample, **hooks)


def main(decode: Decode = decode) -> NoReturn:
    """Serves jobs from the socket that the command line names, then ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which lets its requests finish
    os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):  # where the system sets a lower limit already
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(Closed):
        limits = ServingLimits(**wire.receive()[0]["limits"])
        # Codecs write about broken files to this descriptor, which would be the server's log.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while True:
            _serve(wire, limits, decode)
    sys.exit(0)


def _serve(wire: Wire, limits: ServingLimits, decode: Decode) -> None:
    message, descriptor = wire.receive()
    assert descriptor is not None
    try:
        data = contents(descriptor, int(message["size"]))
    finally:
        os.close(descriptor)
    job = Job(wire, message, data.decode("ascii", "replace") if message["text"] else data, limits)
    # The kernel ends this process at the deadline even if the server is not there any more to do it.
    signal.setitimer(signal.ITIMER_REAL, float(message["seconds"]) + 1)
    try:
        media = decode(job)
        header, array = _described(media)
        wire.send(header, file_of_array(array))
    except RequestError as error:
        wire.send({"refused": error.message})
    except Closed:
        raise
    except Exception as error:
        wire.send({"failed": f"{type(error).__name__}: {error}"[:1000]})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _described(media: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Decoded media as a header and one array."""
    if isinstance(media, Video):
        array = media.frames
        header = {"times": media.timestamps_s.tolist(), "fps": media.fps, "source_frames": media.source_frames}
    elif isinstance(media, Audio):
        array, header = media.samples, {"rate": media.rate}
    else:
        array, header = np.asarray(media), {}
    return {"shape": array.shape, "dtype": str(array.dtype), **header}, array


def numbers_of(limits: ServingLimits) -> dict[str, float]:
    """The limits that a decoder needs: not where files and hosts are."""
    fields = {field.name: getattr(limits, field.name) for field in dataclasses.fields(limits)}
    return {name: value for name, value in fields.items() if isinstance(value, (int, float)) and value is not True}


if __name__ == "__main__":
    main()
