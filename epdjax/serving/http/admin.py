"""``/admin``: what only the operator may do, who proves it with a key."""

import asyncio
import functools
import secrets
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, ConfigDict, Field

from epdjax.serving.errors import RequestError
from epdjax.serving.http.engine import Administered


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

    async def check_key(authorization: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(authorization.encode(), f"Bearer {key}".encode()):
            raise NotAuthorised("send the server's admin key as 'Authorization: Bearer KEY'")

    router = APIRouter(prefix="/admin", dependencies=[Depends(check_key)])

    @router.get("/roles")
    async def get_roles() -> dict[str, Any]:
        """Which instance does what, the load of each stage, and the switches made."""
        return await _off_loop(llm.roles)

    @router.post("/roles")
    async def switch_roles(switch: RoleSwitch) -> dict[str, Any]:
        """Gives an instance other roles, and answers when it has them."""
        return await _off_loop(functools.partial(llm.change_roles, **switch.model_dump()))

    return router


def _off_loop(function: Callable[[], dict[str, Any]]) -> Coroutine[Any, Any, dict[str, Any]]:
    return asyncio.to_thread(function)
