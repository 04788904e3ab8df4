"""`POST /v1/chat/completions`: one exchange, from the bytes of the request to the last byte of its answer."""

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from epdjax.serving.errors import RequestError, StepFailed
from epdjax.serving.http import answers, protocol
from epdjax.serving.http.clients import client_of
from epdjax.serving.http.engine import Engine
from epdjax.serving.http.errors import (
    ModelNotFound,
    error_response,
    internal_error_body,
    internal_error_response,
    request_error_body,
)
from epdjax.serving.http.payloads import Payloads
from epdjax.serving.http.service import Service
from epdjax.serving.http.validation import validate_messages
from epdjax.serving.http.wire import ClientGone, Incoming, check_json, linger, read_body, until_gone
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams, Urgency

log = logging.getLogger(__name__)

# Smaller bodies are parsed in place: in less time than handing them to a thread takes.
PARSE_INLINE_BYTES = 64 * 1024


class ChatExchange(Response):
    """Answers one chat request. It is a response so that everything, reading included, happens where it can be watched:
    whoever leaves early ends the work, and the exchange counts as active until its last byte is out."""

    def __init__(self, service: Service):
        super().__init__()
        self._service = service
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._started = False
        self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the exchange (ASGI)."""
        incoming = Incoming(receive)
        try:
            with self._service.gate.enter():
                await self._serve(scope, incoming, send)
        except RequestError as error:
            await self._fail(error_response(error), request_error_body(error), scope, incoming, send)
        except ClientGone:
            log.info("%s: the client left", self._id)
        except Exception:
            log.exception("%s failed", self._id)
            await self._fail(internal_error_response(), internal_error_body(), scope, incoming, send)
        finally:
            self._service.freed.give_back_after(self._body_bytes)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        check_json(headers)
        limits = self._service.llm.limits
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(self._service.gate.bodies.share())
            body = await read_body(receive, headers.get("content-length"), limits, held)
            self._body_bytes = len(body)
            # The body's share of the buffer goes back once its pictures are decoded, not when the answer ends.
            work = self._answer(body, held.release, scope, receive, send)
            del body
            await until_gone(receive, work)

    async def _answer(
        self, body: bytearray, release: Callable[[], None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        client = client_of(dict(scope))
        asked = await self._read(body, client)
        del body
        request, params, urgency = asked.request, asked.params, asked.urgency
        prepared = await self._service.llm.prepare(asked.messages, client)
        del asked
        release()
        model = self._service.llm.model_name
        async with aclosing(self._outputs(prepared, params, urgency)) as outputs:
            del prepared
            if request.stream:
                options = request.stream_options or protocol.StreamOptions()
                events = await self._stream(answers.Events(self._id, model, self._created, options), outputs, send)
            else:
                answer = await _last(outputs)
        # From here on the engine holds nothing for this request: a client that has its answer can count on that.
        if request.stream:
            await self._send(send, events, more=False)
            return
        content = answers.completion(self._id, model, self._created, answer)
        await JSONResponse(content)(scope, receive, send)

    async def _read(self, body: bytearray, client: str) -> "_Asked":
        if len(body) <= PARSE_INLINE_BYTES:
            return _understand(body, self._service.llm, client)
        llm = self._service.llm
        return await asyncio.wrap_future(self._service.parsers.submit(client, lambda: _understand(body, llm, client)))

    async def _outputs(
        self, prepared: Any, params: SamplingParams, urgency: Urgency
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = self._service.llm.generate(prepared, params, request_id=self._id, urgency=urgency)
        del prepared
        try:
            async for output in outputs:
                yield output
        finally:
            # Not every iterator has aclose; the engine's is a generator and does.
            close = getattr(outputs, "aclose", None)
            if close is not None:
                await close()

    async def _stream(self, events: answers.Events, outputs: AsyncIterator[RequestOutput], send: Send) -> bytes:
        """Streams an answer as server-sent events, and returns the events that end it.

        Nothing is sent before the first output: until then an error still has a status of its own.
        """
        output: RequestOutput | None = None
        async for output in outputs:
            body = events.new(output)
            if body:
                await self._send(send, body, more=True)
            if output.finished:
                break
        return events.end(_finished(output))

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        """Sends a piece of a stream."""
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            # Proxies that buffer would turn the stream into one late answer.
            headers.append((b"x-accel-buffering", b"no"))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _fail(
        self, response: Response, error: dict[str, Any], scope: Scope, incoming: Incoming, send: Send
    ) -> None:
        """Reports an error: as a response of its own, or as the last event of a stream that has begun."""
        with contextlib.suppress(ClientGone):
            if not self._started:
                await linger(incoming, Headers(scope=scope), self._service.llm.limits.max_body_bytes)
                await response(scope, incoming, send)
                return
            await self._send(send, answers.event(error) + answers.DONE, more=False)


@dataclasses.dataclass
class _Asked:
    """A request, taken apart."""

    request: protocol.ChatRequest
    messages: list[dict[str, Any]]
    params: SamplingParams
    urgency: Urgency


def _understand(body: bytearray, llm: Engine, client: str) -> _Asked:
    """Reads a body: everything that can be wrong with it, in the order of what it costs to find out."""
    payloads = Payloads(body)
    payloads.check(llm.text_bounds)
    request = protocol.parse_chat_request(payloads.json)
    if request.model != llm.model_name:
        raise ModelNotFound(f"there is no model {request.model[:100]!r} here; use {llm.model_name!r}", param="model")
    params, urgency = request.sampling_params(), request.urgency(client)
    messages, request.messages = validate_messages(request.messages, payloads), []
    return _Asked(request, messages, params, urgency)


async def _last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    last: RequestOutput | None = None
    async for output in outputs:
        last = output
    return _finished(last)


def _finished(output: RequestOutput | None) -> RequestOutput:
    """The last output, if it is an answer.

    Raises:
        StepFailed: the engine ended the request without one.
    """
    reasons = set() if output is None else {answer.finish_reason for answer in output.outputs}
    if output is None or not output.finished or not reasons <= {"stop", "length"}:
        raise StepFailed("the server ended this request before its answer was complete; send it again")
    return output
