"""``/admin``: what only the operator may do, who proves it with a key."""

import asyncio
import functools
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epdjax.serving.budget import ByteBudget
from epdjax.serving.errors import RequestError
from epdjax.serving.http.engine import Administered
from epdjax.serving.http.protocol import condense
from epdjax.serving.http.wire import check_json, read_body
from epdjax.serving.limits import ServingLimits

BODY = ServingLimits(max_body_bytes=4096, receive_timeout_s=5.0)


class NotAuthorised(RequestError):
    """The admin key is missing or wrong."""

    status = 401
    code = "not_authorised"


class RoleSwitch(BaseModel):
    """Body of ``POST /admin/roles``.

    Attributes:
        instance: its name. roles: that it is to have.
        devices: where it is a group of encoders, how many leave it.
        dry_run: only say what would change.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    instance: str = Field(max_length=100)
    roles: str = Field(max_length=10)
    devices: int = 1
    dry_run: bool = False


def admin_router(llm: Administered, key: str) -> APIRouter:
    """The paths below ``/admin``, for who sends ``Authorization: Bearer`` and the key."""

    async def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise NotAuthorised("send the server's admin key as 'Authorization: Bearer KEY'")

    router = APIRouter(prefix="/admin", dependencies=[Depends(check_key)])

    @router.get("/roles")
    async def get_roles() -> dict[str, Any]:
        """Which instance does what, the load of each stage, and the switches made."""
        return await _off_loop(llm.roles)

    body = {"required": True, "content": {"application/json": {"schema": RoleSwitch.model_json_schema()}}}

    @router.post("/roles", openapi_extra={"requestBody": body})
    async def switch_roles(request: Request) -> dict[str, Any]:
        """Gives an instance other roles, and answers when it has them."""
        # Read here and not by FastAPI, which would read all of it before it looks at the key.
        switch = await _read(request)
        return await _off_loop(functools.partial(llm.change_roles, **switch.model_dump()))

    return router


async def _read(request: Request) -> RoleSwitch:
    check_json(request.headers)
    length = request.headers.get("content-length")
    with ByteBudget(2 * BODY.max_body_bytes, "bytes").share() as held:
        body = await read_body(request.receive, length, BODY, held)
    try:
        return RoleSwitch.model_validate_json(body)
    except ValidationError as error:
        raise condense(error, RoleSwitch) from None


def _off_loop(function: Callable[[], dict[str, Any]]) -> Coroutine[Any, Any, dict[str, Any]]:
    return asyncio.to_thread(function)
