"""Decoder processes: media are decoded in a few children, each of which can be ended without harm to anybody else.

So every file has a deadline, a decoder that crashes costs its own file alone, and the memory it leaves behind goes
with it. `decoder_process` is what runs in a child. Pixels come back in memory that both map (see `memory_files`).

A file that takes long does not hold up others: after a quarter of a second it gives its turn to the next and goes on
beside it, as one of a bounded number of slow ones.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import epdjax
from epdjax.models.media import Audio, Video
from epdjax.serving.errors import MediaError, Overloaded, PreprocessingFailed, ServiceUnavailable
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.decoder_process import numbers_of
from epdjax.serving.media.decoder_wire import Closed, Wire
from epdjax.serving.media.memory_files import file_of, mapped_array
from epdjax.serving.media.sources import DataURL, Kind

log = logging.getLogger(__name__)

COMMAND = ("-m", "epdjax.serving.media.decoder_process")
SLOW_S = 0.25  # from then on a file counts as slow; a picture of 12 million pixels takes half as long
Sampler = Callable[[int, float], np.ndarray]
ReserveBy = Callable[[int, float], None]
"""(bytes, ``time.monotonic()`` to wait until): takes room for media about to be decoded, or raises Overloaded."""


class DecoderPool:
    """See the module. Safe to use from any thread; its calls block.

    Args:
        limits: what a file may cost.
        workers: files that are decoded at a time; as many again may be slow ones.
        command: what Python runs in a child.
    """

    def __init__(self, limits: ServingLimits, workers: int, command: Sequence[str] = COMMAND):
        self._limits, self._workers, self._command = limits, workers, tuple(command)
        self._turns = threading.BoundedSemaphore(workers)
        self._slow = threading.BoundedSemaphore(workers)
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        self._closed = False

    @property
    def places(self) -> int:
        """Files that can be under way at a time."""
        return 2 * self._workers

    @property
    def processes(self) -> list[int]:
        """Process ids of the children there are."""
        with self._lock:
            return [decoder.pid for decoder in self._all]

    def start(self) -> None:
        """Start the children now, so that the first file does not wait for one. Returns at once."""
        with self._lock:
            missing = 0 if self._closed else self._workers - len(self._all)
        for _ in range(missing):
            self._keep(self._new())

    def close(self) -> None:
        """End all children, whatever they are doing. Who waits for one gets an error."""
        with self._lock:
            self._closed = True
            everyone, self._idle = list(self._all), []
        for decoder in everyone:
            self._end(decoder)

    def load(
        self,
        kind: Kind,
        source: str | DataURL | bytes,
        *,
        deadline: float,
        reserve: ReserveBy,
        sample: Sampler | None = None,
        rate: int = 0,
    ) -> Image.Image | Video | Audio:
        """Decode one file.

        Args:
            kind: what it has to be.
            source: a data URL, or the bytes of the file.
            deadline: ``time.monotonic()`` at which to give it up.
            reserve: called with the bytes that its pixels or samples will take, before they are there.
            sample: for a video, which frames to keep. rate: for sound, samples per second.

        Raises:
            MediaError: it is broken, too large or too slow.
            Overloaded: every place is taken until the deadline, or there is no room by then.
            ServiceUnavailable: the pool is closed.
        """
        if not self._turns.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Overloaded(f"too many {kind.noun}s are being decoded; try again soon", retry_after_s=1.0)
        turn = _Turn(self._turns, self._slow)
        try:
            decoder = self._take()
            try:
                message = {"kind": kind.mime, "rate": rate, "seconds": deadline - time.monotonic()}
                media = _converse(decoder.wire, turn, message, source, deadline, reserve, sample, kind)
            except (Closed, TimeoutError) as error:
                self._end(decoder)
                self._refuse_if_closed()
                if isinstance(error, TimeoutError):
                    raise MediaError(
                        f"the {kind.noun} takes too long to decode; send a smaller or simpler one"
                    ) from None
                log.warning("a decoder ended on a %s, with status %s", kind.noun, decoder.status)
                raise MediaError(
                    f"the {kind.noun} could not be decoded: its decoder ended; save it anew, in another format"
                ) from None
            except BaseException as error:
                if isinstance(error, _Refused):
                    self._keep(decoder)
                    raise MediaError(str(error)) from None
                self._end(decoder)  # it is in the middle of something
                raise
            self._keep(decoder)
            return media
        finally:
            turn.give_back()
            self.start()

    def _take(self) -> "_Decoder":
        while True:
            with self._lock:
                decoder = self._idle.pop() if self._idle else None
            if decoder is None:
                return self._new()
            if decoder.status is None:
                return decoder
            self._end(decoder)

    def _new(self) -> "_Decoder":
        self._refuse_if_closed()
        decoder = _Decoder(self._command, self._limits)
        with self._lock:
            self._all.add(decoder)
            closed = self._closed
        if closed:
            self._end(decoder)
            self._refuse_if_closed()
        return decoder

    def _keep(self, decoder: "_Decoder") -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < self._workers
            if keep:
                self._idle.append(decoder)
        if not keep:
            self._end(decoder)

    def _end(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._all.discard(decoder)
        decoder.end()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ServiceUnavailable("the server is shutting down; send the request again later")


class _Refused(Exception):
    """What a decoder says of a file it does not take."""


class _Turn:
    """The right to have a file decoded: one of the turns at first, one of the places of slow files later."""

    def __init__(self, turns: threading.BoundedSemaphore, slow: threading.BoundedSemaphore):
        self._held, self._slow = turns, slow
        self.is_slow = False

    def become_slow(self) -> None:
        """Let the next file begin, if there is a place for one more slow file."""
        if self._slow.acquire(blocking=False):
            self._held.release()
            self._held, self.is_slow = self._slow, True

    def give_back(self) -> None:
        self._held.release()


class _Decoder:
    """One child process."""

    def __init__(self, command: Sequence[str], limits: ServingLimits):
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(epdjax.__file__).parents[1])
            paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            self._process = subprocess.Popen(
                # -P: no file of the working directory passes for a module.
                [sys.executable, "-P", *command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,
            )
        self.wire = Wire(ours)
        self.wire.send({"limits": numbers_of(limits)})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End it, now."""
        self._process.kill()
        self._process.wait()
        self.wire.close()


def _converse(
    wire: Wire,
    turn: _Turn,
    message: dict[str, Any],
    source: str | DataURL | bytes,
    deadline: float,
    reserve: ReserveBy,
    sample: Sampler | None,
    kind: Kind,
) -> Image.Image | Video | Audio:
    """Hand a file over and answer what the decoder asks, until the media are there."""
    pieces = _pieces(source)
    message |= {"size": sum(map(len, pieces)), "text": not isinstance(source, bytes)}
    wire.send(message, file_of(*pieces), deadline=deadline)
    del pieces
    slow_at = time.monotonic() + SLOW_S
    while True:
        while not turn.is_slow and not wire.has_message(min(slow_at, deadline)):
            if time.monotonic() >= deadline:
                raise TimeoutError
            turn.become_slow()
            slow_at = time.monotonic() + SLOW_S
        answer, descriptor = wire.receive(deadline=deadline)
        if descriptor is not None:
            try:
                return _media(answer, descriptor, kind)
            finally:
                os.close(descriptor)
        if "reserve" in answer:
            _reserve(reserve, int(answer["reserve"]), turn, deadline)
            wire.send({}, deadline=deadline)
        elif "frames" in answer and sample is not None:
            wire.send({"indices": _indices(sample, answer, kind)}, deadline=deadline)
        elif "refused" in answer:
            raise _Refused(answer["refused"])
        elif "failed" in answer:
            log.error("decoding a %s failed: %s", kind.noun, answer["failed"])
            raise PreprocessingFailed(f"the server failed to decode the {kind.noun}; its log has the reason")
        else:
            raise Closed


def _reserve(reserve: ReserveBy, size: int, turn: _Turn, deadline: float) -> None:
    """Wait for room, with a turn at first and then as a slow file."""
    while not turn.is_slow:
        try:
            reserve(size, min(deadline, time.monotonic() + SLOW_S))
            return
        except Overloaded:
            if time.monotonic() >= deadline:
                raise
            turn.become_slow()
    reserve(size, deadline)


def _pieces(source: str | DataURL | bytes) -> list[bytes | memoryview]:
    """What a decoder is given of a file, without making one long string of it."""
    if isinstance(source, DataURL):
        return [source.head.encode("ascii", "replace"), source.base64]
    return [source.encode("ascii", "replace") if isinstance(source, str) else source]


def _indices(sample: Sampler, answer: dict[str, Any], kind: Kind) -> list[int]:
    try:
        return [int(index) for index in sample(int(answer["frames"]), float(answer["fps"]))]
    except ValueError as error:
        raise MediaError(str(error)) from error


def _media(header: dict[str, Any], descriptor: int, kind: Kind) -> Image.Image | Video | Audio:
    """Media from what a decoder has sent, believed only as far as it can be checked.

    Raises:
        Closed: it is not what was asked for.
    """
    wanted = {"image": ("uint8", 3), "video": ("uint8", 4), "audio": ("float32", 1)}[kind.mime]
    shape = tuple(int(size) for size in header["shape"])
    if (header["dtype"], len(shape)) != wanted or min(shape) < 0 or (len(shape) > 1 and shape[-1] != 3):
        raise Closed
    try:
        array = mapped_array(descriptor, shape, header["dtype"])
    except (ValueError, OSError):
        raise Closed from None
    if kind.mime == "image":
        return Image.frombuffer("RGB", (shape[1], shape[0]), array, "raw", "RGB", 0, 1)
    if kind.mime == "audio":
        return Audio(array, int(header["rate"]))
    times = np.asarray(header["times"], np.float64)
    return Video(array, times, float(header["fps"]), header["source_frames"])
