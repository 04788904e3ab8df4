"""Every failure as the JSON that OpenAI's clients understand, with a status, and without anything internal."""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from epdjax.serving.errors import InvalidRequest, Overloaded, RequestError, ServiceUnavailable

log = logging.getLogger(__name__)

MAX_MESSAGE = 500
RETRY_WHEN_UNAVAILABLE_S = 5.0


class ModelNotFound(RequestError):
    """A model this server does not serve."""

    status = 404
    code = "model_not_found"


class BodyTooLarge(RequestError):
    """A request body over the limit."""

    status = 413
    code = "request_too_large"


class BodyTimeout(RequestError):
    """A request body that does not arrive."""

    status = 408
    code = "request_timeout"


class UnsupportedMediaType(RequestError):
    """A request body that does not claim to be JSON."""

    status = 415
    code = "unsupported_media_type"


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An OpenAI-style error object."""
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + "..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def request_error_body(error: RequestError) -> dict[str, Any]:
    """The error object of a request's error."""
    return error_body(error.message, kind=error.kind, param=error.param, code=error.code)


def internal_error_body() -> dict[str, Any]:
    """The error object of anything unexpected. What happened is in the server's log only."""
    return error_body(
        "the server failed to answer this request; its log has the reason", kind="server_error", code="internal_error"
    )


def error_response(error: RequestError) -> JSONResponse:
    """The response to a request's error; 429 and 503 say when to try again."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, ServiceUnavailable):
        headers["retry-after"] = str(math.ceil(RETRY_WHEN_UNAVAILABLE_S))
    if error.status in (408, 413, 503):
        # The rest of the body may still be on its way, or the server on its way out: no second request here.
        headers["connection"] = "close"
    return JSONResponse(request_error_body(error), status_code=error.status, headers=headers)


def internal_error_response() -> JSONResponse:
    """The response to anything unexpected."""
    return JSONResponse(internal_error_body(), status_code=500)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every path of an application fail in the same shape."""

    async def on_request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    async def on_bad_body(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return error_response(InvalidRequest(f"{field}: {first['msg']}", param=field))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        method, path = request.method[:20], request.url.path[:100]
        message, code = str(error.detail), "invalid_request"
        if error.status_code == 404:
            message, code = f"there is no {path!r} here; the API is at /v1/chat/completions and /v1/models", "not_found"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow") or "another method"
            if request.method == "OPTIONS":
                allowed += ", HEAD, OPTIONS" if "GET" in allowed else ", OPTIONS"
                return Response(status_code=204, headers={"allow": allowed})
            message, code = f"{path!r} does not take {method}; use {allowed}", "method_not_allowed"
        body = error_body(message, kind="invalid_request_error", code=code)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    async def on_anything(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return internal_error_response()

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_bad_body)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_anything)
