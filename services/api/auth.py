"""Who is calling: API keys now; every route declares the scope it needs, and one that does not cannot start."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import falcon.asgi
import psycopg

from shared.db import AsyncPool
from shared.jobs.queries import Viewer

from .errors import Problem
from .keys import digest, key_id

__all__ = ["ALL_SCOPES", "CHECK_SECONDS", "Authenticator", "Caller", "PUBLIC", "requires", "still_valid"]

PUBLIC = "public"
ALL_SCOPES = (
    "jobs:read",
    "jobs:write",
    "uploads:write",
    "submissions:read",
    "standards:read",
    "standards:write",
    "gradings:read",
    "gradings:write",
)

# A key is looked up again after this long, so that a revoked one dies within it.
_CACHE_SECONDS = 5.0
CHECK_SECONDS = _CACHE_SECONDS
_CACHE_KEYS = 10_000
_TOUCH_SECONDS = 60.0

_F = TypeVar("_F", bound=Callable[..., Any])

_FIND = """
select k.id, k.hash, k.scopes, k.expires_at, k.revoked_at, k.org_id, k.member_id, m.role, m.email
  from api_keys k join members m on m.id = k.member_id where k.id = %(id)s
"""
_TOUCH = "update api_keys set last_used_at = now() where id = %(id)s"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller; ``viewer`` is what its queries are limited to."""

    viewer: Viewer
    scopes: frozenset[str]
    key_id: UUID

    @property
    def actor(self) -> str:
        """How events name it."""
        return f"member:{self.viewer.member_id}"


def requires(scope: str) -> Callable[[_F], _F]:
    """Declare what a responder needs: a scope of ``ALL_SCOPES``, or ``PUBLIC``."""
    if scope != PUBLIC and scope not in ALL_SCOPES:
        raise ValueError(f"unknown scope {scope!r}")

    def mark(responder: _F) -> _F:
        responder.__dict__["required_scope"] = scope
        return responder

    return mark


class Authenticator:
    """Falcon middleware. Sets ``req.context.caller``; refuses before any responder runs."""

    def __init__(self, pool: Callable[[], AsyncPool]) -> None:
        self._pool = pool
        self._cache: dict[bytes, tuple[float, Caller]] = {}
        self._touched: dict[UUID, float] = {}

    async def process_resource(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: Any, params: dict[str, Any]
    ) -> None:
        responder = getattr(resource, f"on_{req.method.lower()}", None)
        if responder is None:  # 404 and 405 are Falcon's to answer
            return
        scope = responder.required_scope
        if scope == PUBLIC:
            return
        caller = await self._caller(req)
        if scope not in caller.scopes:
            raise Problem(403, "auth.missing_scope", f"This key lacks the scope {scope}.")
        req.context.caller = caller

    async def _caller(self, req: falcon.asgi.Request) -> Caller:
        text = _presented(req)
        if text is None:
            raise _unauthorised("auth.required", "Send an API key as 'Authorization: Bearer gl_…'.")
        hashed = digest(text)
        now = time.monotonic()
        cached = self._cache.get(hashed)
        if cached is not None and cached[0] > now:
            return cached[1]
        caller = await self._look_up(text, hashed)
        if len(self._cache) >= _CACHE_KEYS:
            self._cache.clear()
        self._cache[hashed] = (now + _CACHE_SECONDS, caller)
        return caller

    async def _look_up(self, text: str, hashed: bytes) -> Caller:
        id = key_id(text)
        if id is None:
            raise _unauthorised("auth.invalid_key", "That is not an API key. Check that it was copied whole.")
        async with self._pool().connection() as conn:
            row = await (await conn.execute(_FIND, {"id": id})).fetchone()
            if row is None or not hmac.compare_digest(row["hash"], hashed):
                raise _unauthorised("auth.invalid_key", "That API key is not known.")
            if row["revoked_at"] is not None:
                raise _unauthorised("auth.revoked_key", "That API key was revoked.")
            if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC):
                raise _unauthorised("auth.expired_key", "That API key has expired.")
            if self._touched.get(id, 0.0) < time.monotonic() - _TOUCH_SECONDS:
                self._touched[id] = time.monotonic()
                await conn.execute(_TOUCH, {"id": id})
        viewer = Viewer(row["org_id"], row["member_id"], row["role"])
        return Caller(viewer, frozenset(row["scopes"]), row["id"])


_STILL_VALID = """
select 1 from api_keys where id = %(id)s and revoked_at is null and (expires_at is null or expires_at > now())
"""


async def still_valid(conn: psycopg.AsyncConnection[dict[str, Any]], caller: Caller) -> bool:
    """Is the key that opened a stream good still? Streams outlive the request that was checked: ask every
    ``CHECK_SECONDS``."""
    return await (await conn.execute(_STILL_VALID, {"id": caller.key_id})).fetchone() is not None


def _presented(req: falcon.asgi.Request) -> str | None:
    authorization: str | None = req.get_header("Authorization")
    if authorization:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() == "bearer" and text.strip():
            return text.strip()
    return req.get_header("X-API-Key")


def _unauthorised(code: str, detail: str) -> Problem:
    return Problem(401, code, detail, headers={"WWW-Authenticate": 'Bearer realm="gradeline"'})
