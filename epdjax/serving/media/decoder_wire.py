"""What the server and its decoder processes say to each other: JSON messages over a socket, with file descriptors.

Nothing is unpickled: a decoder that somebody has taken over can send wrong pixels, but no code.
"""

import json
import os
import select
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct(">I")
MAX_MESSAGE = 1 << 20


class Closed(Exception):
    """The other side has ended."""


class Wire:
    """One end of a connection between two processes."""

    def __init__(self, connection: socket.socket):
        self._socket = connection

    def send(self, message: dict[str, Any], descriptor: int | None = None, *, deadline: float | None = None) -> None:
        """Sends a message, and with it a descriptor, which is closed here.

        Raises:
            TimeoutError: the other side has not taken it by `deadline` (``time.monotonic()``).
            Closed: nobody is there to take it.
        """
        payload = json.dumps(message).encode()
        try:
            self._limit(deadline)
            descriptors = [] if descriptor is None else [descriptor]
            sent = socket.send_fds(self._socket, [_LENGTH.pack(len(payload)) + payload], descriptors)
            rest = (_LENGTH.pack(len(payload)) + payload)[sent:]
            if rest:
                self._socket.sendall(rest)
        except TimeoutError:
            raise
        except OSError:
            raise Closed from None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def receive(self, *, deadline: float | None = None) -> tuple[dict[str, Any], int | None]:
        """The next message and the descriptor that came with it, which the caller has to close.

        Raises:
            TimeoutError: it has not come by `deadline`.
            Closed: the other side has ended, or sends what is no message.
        """
        try:
            self._limit(deadline)
            head, descriptors, _, _ = socket.recv_fds(self._socket, _LENGTH.size, 1)
        except TimeoutError:
            raise
        except OSError:
            raise Closed from None
        descriptor = descriptors[0] if descriptors else None
        try:
            head += self._read(_LENGTH.size - len(head)) if head else b""
            if not head:
                raise Closed
            (length,) = _LENGTH.unpack(head)
            if length > MAX_MESSAGE:
                raise Closed
            message = json.loads(self._read(length))
            if not isinstance(message, dict):
                raise Closed
        except BaseException as error:
            if descriptor is not None:
                os.close(descriptor)
            if isinstance(error, (ValueError, OSError)) and not isinstance(error, TimeoutError):
                raise Closed from None
            raise
        return message, descriptor

    def has_message(self, until: float) -> bool:
        """Waits for the beginning of a message, or for the other side's end; whether it came by `until`.

        Raises:
            Closed: this end was closed.
        """
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
        except (OSError, ValueError):
            raise Closed from None
        return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise Closed
            data += piece
        return bytes(data)

    def _limit(self, deadline: float | None) -> None:
        if deadline is not None and deadline <= time.monotonic():
            raise TimeoutError
        self._socket.settimeout(None if deadline is None else deadline - time.monotonic())
