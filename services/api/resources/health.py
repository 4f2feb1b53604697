"""``/healthz``: is the process up. ``/readyz``: can it take work now."""

from __future__ import annotations

import asyncio
from typing import Any

import falcon
import falcon.asgi

from ..auth import PUBLIC, requires
from ..deps import Deps

__all__ = ["Healthz", "Readyz"]


class Healthz:
    @requires(PUBLIC)
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.media = {"status": "ok"}


class Readyz:
    """Ready means Postgres answers. Redis is told, but not needed: accepting work does not depend on it."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires(PUBLIC)
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        checks: dict[str, Any] = {"postgres": "ok", "redis": "ok" if self._deps.watcher.connected else "away"}
        try:
            async with asyncio.timeout(2), self._deps.pool.connection() as conn:
                await conn.execute("select 1")
        except Exception as e:
            checks["postgres"] = type(e).__name__
            resp.status = falcon.HTTP_503
        resp.media = {"status": "ok" if checks["postgres"] == "ok" else "failing", "checks": checks}
