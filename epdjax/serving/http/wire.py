"""The connection below a request: its body read within bounds, and its client watched while the answer is made."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from epdjax.serving.budget import Share
from epdjax.serving.http.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from epdjax.serving.limits import ServingLimits

T = TypeVar("T")
LINGER_S = 5.0


class ClientGone(Exception):
    """Nobody is left to answer."""


class Incoming:
    """The messages of one request (ASGI's `receive`), remembering whether its body was begun and has ended."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.begun = self.complete = False

    async def __call__(self) -> Message:
        """The next message."""
        self.begun = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.complete = True
        return message


def check_json(headers: Headers) -> None:
    """Refuse a body that does not say it is plain JSON.

    Raises:
        UnsupportedMediaType: says what to send.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # A small body could become a huge one.
        raise UnsupportedMediaType(
            f"bodies are taken as they are, not in {encoding[:50]!r}; leave Content-Encoding out"
        )
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Insisting on it also keeps other web sites' forms from using a server in reach of the browser.
        raise UnsupportedMediaType("send the request with the header 'Content-Type: application/json'")


async def read_body(receive: Receive, content_length: str | None, limits: ServingLimits, held: Share) -> bytearray:
    """Reads a request body, never holding more than the limit, whether or not its length was announced.

    Raises:
        BodyTooLarge: more than `limits.max_body_bytes`.
        BodyTimeout: it did not arrive within `limits.receive_timeout_s`.
        Overloaded: the server's buffers are full.
        ClientGone: the client left before its end.
    """
    announced = int(content_length) if content_length and content_length.isdecimal() else 0
    body = bytearray()
    try:
        async with asyncio.timeout(limits.receive_timeout_s):
            more = True
            while more:
                # Also before the first read: an announced length is believed when it is bad news.
                if max(announced, len(body)) > limits.max_body_bytes:
                    break
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                held.add(len(chunk))
                body += chunk
                more = message.get("more_body", False)
    except TimeoutError:
        raise BodyTimeout(
            f"the request's body did not arrive within {limits.receive_timeout_s:g} s; send it faster, or a smaller one"
        ) from None
    if max(announced, len(body)) > limits.max_body_bytes:
        raise BodyTooLarge(
            f"the request's body is larger than {limits.max_body_bytes} bytes; send fewer or smaller media"
        )
    return body


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Does the work unless the client leaves, which cancels it. To be used once the body has been read.

    Raises:
        ClientGone: it left.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_gone(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientGone
    finally:
        for task in (worker, watcher):
            task.cancel()
        # The work must have given everything back before the request counts as finished.
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def linger(incoming: Incoming, headers: Headers, most: int) -> None:
    """Drops (some of) a body nobody wants: closing under a client that sends could lose the answer that says why."""
    if not incoming.begun and headers.get("expect", "").lower() == "100-continue":
        return  # it waits for a word before it sends anything
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while dropped <= most and not incoming.complete:
                dropped += len((await incoming()).get("body", b""))
