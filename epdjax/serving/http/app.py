"""The application: its paths, and what each answers."""

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epdjax.serving.http import answers, protocol
from epdjax.serving.http.admin import admin_router
from epdjax.serving.http.chat import ChatExchange
from epdjax.serving.http.engine import Engine
from epdjax.serving.http.errors import ModelNotFound, install_error_handlers
from epdjax.serving.http.service import Service

CLOSE_TIMEOUT_S = 30.0


def create_app(llm: Engine, *, admin_key: str | None = None) -> FastAPI:
    """Makes the application around an engine (an `AsyncLLM`). `app.state.service` is what its requests share.

    With an `admin_key` there is ``/admin`` too, for who sends it.

    There are no CORS headers: a browser page of another origin gets no answers.
    """
    service = Service.of(llm)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        # With `serve` this is done already; another ASGI server only has this.
        await service.close(CLOSE_TIMEOUT_S)

    app = FastAPI(title="epdjax", version=_version(), lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    install_error_handlers(app)
    app.add_middleware(HeadAsGet)

    body = {"required": True, "content": {"application/json": {"schema": _inlined(protocol.ChatRequest)}}}

    @app.post("/v1/chat/completions", response_model=None, openapi_extra={"requestBody": body})
    async def create_chat_completion() -> Response:
        """Answers a conversation with text and pictures."""
        return ChatExchange(service)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Lists the one model that is served."""
        return {"object": "list", "data": [answers.model_card(llm.model_name, service.created)]}

    @app.get("/v1/models/{model:path}")
    async def get_model(model: str) -> dict[str, Any]:
        """Describes the served model."""
        if model != llm.model_name:
            raise ModelNotFound(f"there is no model {model[:100]!r} here; use {llm.model_name!r}", param="model")
        return answers.model_card(llm.model_name, service.created)

    @app.get("/live")
    async def live() -> dict[str, str]:
        """200 while the process works, also while it drains: liveness."""
        return {"status": "live"}

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """200 while requests are taken; 503 while draining, or when nothing can be served any more: readiness."""
        state = llm.health()
        ok, status = state.ok, state.status
        if service.gate.draining and status != "dead":
            ok, status = False, "draining"
        content = {"status": status, "active_requests": service.gate.active, **state.detail}
        return JSONResponse(content, status_code=200 if ok else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of the software."""
        return {"version": _version()}

    @app.get("/")
    async def root() -> dict[str, Any]:
        """Where to go from here."""
        paths = ["/v1/chat/completions", "/v1/models", "/health", "/live", "/version"]
        return {"name": "epdjax", "model": llm.model_name, "docs": "/docs", "paths": paths}

    if admin_key:
        app.include_router(admin_router(llm, admin_key))
    return app


class HeadAsGet:
    """Answers HEAD wherever GET is answered, without the body."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


def _version() -> str:
    try:
        return metadata.version("epdjax")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON schema without references: inside an OpenAPI document they would point nowhere."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(definitions[node["$ref"].rpartition("/")[2]])
            return {key: inline(value) for key, value in node.items()}
        return [inline(value) for value in node] if isinstance(node, list) else node

    return inline(schema)  # type: ignore[no-any-return]
