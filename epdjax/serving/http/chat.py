"""`POST /v1/chat/completions`: one exchange, from the bytes of the request to the last byte of its answer."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pydantic_core
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from epdjax.serving.errors import RequestError, StepFailed
from epdjax.serving.http import protocol
from epdjax.serving.http.errors import (
    ModelNotFound,
    UnsupportedMediaType,
    error_response,
    internal_error_body,
    internal_error_response,
    request_error_body,
)
from epdjax.serving.http.service import Service
from epdjax.serving.http.validation import validate_messages
from epdjax.serving.http.wire import ClientGone, Incoming, linger, read_body, until_gone
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams

log = logging.getLogger(__name__)

# Smaller bodies are parsed in place: in less time than handing them to a thread takes.
PARSE_INLINE_BYTES = 64 * 1024
DONE = b"data: [DONE]\n\n"


class ChatExchange(Response):
    """Answers one chat request. It is a response so that everything, reading included, happens where it can be watched:
    whoever leaves early ends the work, and the exchange counts as active until its last byte is out."""

    def __init__(self, service: Service):
        super().__init__()
        self._service = service
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._started = False

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

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Request(scope).headers
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Insisting on it also keeps other web sites' forms from using a server in reach of the browser.
            raise UnsupportedMediaType("send the request with the header 'Content-Type: application/json'")
        limits = self._service.llm.limits
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(self._service.gate.buffer())
            body = await read_body(receive, headers.get("content-length"), limits, held)
            # The body's share of the buffer goes back once its pictures are decoded, not when the answer ends.
            work = self._answer(body, stack.close, scope, receive, send)
            del body
            await until_gone(receive, work)

    async def _answer(
        self, body: bytes, parsed: Callable[[], None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        request, messages, params = await self._prepare(body)
        del body
        parsed()
        model = self._service.llm.model_name
        async with aclosing(self._outputs(messages, params)) as outputs:
            del messages
            if request.stream:
                events = await self._stream(model, request.stream_options or protocol.StreamOptions(), outputs, send)
            else:
                answer = await _last(outputs)
        # From here on the engine holds nothing for this request: a client that has its answer can count on that.
        if request.stream:
            await self._send(send, events, more=False)
            return
        used = protocol.usage(answer.prompt_tokens, len(answer.outputs[0].token_ids), answer.cached_tokens)
        text, reason = answer.outputs[0].text, answer.outputs[0].finish_reason or "stop"
        content = protocol.completion(self._id, model, self._created, text, reason, used)
        await JSONResponse(content)(scope, receive, send)

    async def _prepare(self, body: bytes) -> tuple[protocol.ChatRequest, list[dict[str, Any]], SamplingParams]:
        """Everything that can be wrong with a request, in the order of what it costs to find out."""
        llm, pool = self._service.llm, self._service.pool
        if len(body) <= PARSE_INLINE_BYTES:
            request = protocol.parse_chat_request(body)
        else:
            request = await pool.run(protocol.parse_chat_request, body)
        if request.model != llm.model_name:
            raise ModelNotFound(
                f"there is no model {request.model[:100]!r} here; use {llm.model_name!r}", param="model"
            )
        params = request.sampling_params()
        messages, pictures = validate_messages(request.messages)
        request.messages = []
        if pictures:
            messages = await pool.run(llm.resolve_media, messages)
        return request, messages, params

    async def _outputs(
        self, messages: list[dict[str, Any]], params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = self._service.llm.generate(messages, params, request_id=self._id)
        del messages
        try:
            async for output in outputs:
                yield output
        finally:
            # Not every iterator has aclose; the engine's is a generator and does.
            close = getattr(outputs, "aclose", None)
            if close is not None:
                await close()

    async def _stream(
        self, model: str, options: protocol.StreamOptions, outputs: AsyncIterator[RequestOutput], send: Send
    ) -> bytes:
        """Streams an answer as server-sent events, and returns the events that end it.

        Nothing is sent before the first output: until then an error still has a status of its own.
        """
        sent = 0
        output: RequestOutput | None = None
        async for output in outputs:
            answer = output.outputs[0]
            used = protocol.usage(output.prompt_tokens, len(answer.token_ids), output.cached_tokens)
            events = []
            if not self._started:
                events.append(self._chunk(model, {"role": "assistant", "content": ""}, options, used))
            if len(answer.text) > sent:
                events.append(self._chunk(model, {"content": answer.text[sent:]}, options, used))
                sent = len(answer.text)
            if events:
                await self._send(send, b"".join(events), more=True)
            if output.finished:
                break
        last = _finished(output)
        used = protocol.usage(last.prompt_tokens, len(last.outputs[0].token_ids), last.cached_tokens)
        reason: Any = last.outputs[0].finish_reason
        events = [self._chunk(model, {}, options, used, reason)]
        if options.include_usage:
            events.append(_event(protocol.chunk(self._id, model, self._created, None) | {"usage": used}))
        return b"".join([*events, DONE])

    def _chunk(
        self,
        model: str,
        delta: dict[str, str],
        options: protocol.StreamOptions,
        used: dict[str, int],
        reason: Any = None,
    ) -> bytes:
        event = protocol.chunk(self._id, model, self._created, delta, reason)
        if options.continuous_usage_stats:
            event["usage"] = used
        elif options.include_usage:
            event["usage"] = None
        return _event(event)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        """Sends a piece of a stream, waiting for a slow reader, but not for ever."""
        try:
            async with asyncio.timeout(self._service.llm.limits.stall_timeout_s):
                if not self._started:
                    self._started = True
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                    # Proxies that buffer would turn the stream into one late answer.
                    headers.append((b"x-accel-buffering", b"no"))
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:
            raise ClientGone from None

    async def _fail(
        self, response: Response, error: dict[str, Any], scope: Scope, incoming: Incoming, send: Send
    ) -> None:
        """Reports an error: as a response of its own, or as the last event of a stream that has begun."""
        if not self._started:
            await linger(incoming, self._service.llm.limits.max_body_bytes)
            await response(scope, incoming, send)
            return
        with contextlib.suppress(ClientGone):
            await self._send(send, _event(error) + DONE, more=False)


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
    if output is None or not output.finished or output.outputs[0].finish_reason not in ("stop", "length"):
        raise StepFailed("the server ended this request before its answer was complete; send it again")
    return output


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + pydantic_core.to_json(data) + b"\n\n"
