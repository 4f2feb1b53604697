"""``GET /jobs/{id}/events``: server-sent events, replayed from Postgres after ``Last-Event-ID``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import falcon
import falcon.asgi
import orjson
import psycopg
import structlog
from falcon.asgi import SSEvent
from psycopg_pool import PoolTimeout

from shared.jobs import TERMINAL, queries
from shared.jobs.views import event_json

from ..auth import CHECK_SECONDS, Caller, requires, still_valid
from ..deps import Deps
from ..errors import Problem
from .jobs import find_job

__all__ = ["JobEvents"]

# A comment line keeps proxies from closing a quiet stream.
PING_SECONDS = 15.0
_PAGE = 500
_log = structlog.get_logger(__name__)


class JobEvents:
    """Each event has the job's gapless ``seq`` as its id. The stream ends after the job's last event; a client that
    reconnects then is answered 204, which tells EventSource to stop."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        after = _last_event_id(req)
        row = await find_job(self._deps, req.context.caller, job_id)
        # An id beyond the last event would wait for events that never come.
        after = min(after, row["event_seq"])
        if row["status"] in TERMINAL and after >= row["event_seq"]:
            resp.status = falcon.HTTP_204
            return
        resp.set_header("Cache-Control", "no-cache")
        resp.set_header("X-Accel-Buffering", "no")
        resp.sse = self._stream(req.context.caller, row["id"], after)

    async def _stream(self, caller: Caller, job_id: UUID, after: int) -> AsyncIterator[SSEvent | None]:
        sent_at = checked_at = time.monotonic()
        # The server sends the answer's head with the first piece of its body: a quiet job's stream must open too.
        yield None
        async with self._deps.watcher.watching(job_id) as bell:
            while True:
                bell.clear()
                try:
                    async with self._deps.pool.connection() as conn:
                        if time.monotonic() - checked_at >= CHECK_SECONDS:
                            checked_at = time.monotonic()
                            if not await still_valid(conn, caller):
                                return
                        rows = await (
                            await conn.execute(queries.EVENTS, {"job_id": job_id, "after": after, "limit": _PAGE})
                        ).fetchall()
                except (psycopg.OperationalError, PoolTimeout) as e:
                    # The answer has begun, so it cannot become a 503: end it, and the client resumes where it was.
                    _log.warning("events.backend_down", error=type(e).__name__)
                    return
                for row in rows:
                    after = row["seq"]
                    sent_at = time.monotonic()
                    yield _event(job_id, row)
                    if row["kind"] in _LAST:
                        return
                if not self._deps.alive():
                    return
                if len(rows) == _PAGE:
                    continue
                if time.monotonic() - sent_at >= PING_SECONDS:
                    sent_at = time.monotonic()
                    yield None
                await self._deps.watcher.wait(bell)


# The kinds that end a job carry the names of the statuses they lead to.
_LAST = {status.value for status in TERMINAL}


def _event(job_id: UUID, row: dict[str, Any]) -> SSEvent:
    data = orjson.dumps(event_json(job_id, row), option=orjson.OPT_UTC_Z)
    return SSEvent(data=data, event=row["kind"], event_id=str(row["seq"]), retry=2000 if row["seq"] == 1 else None)


def _last_event_id(req: falcon.asgi.Request) -> int:
    text = req.get_header("Last-Event-ID") or req.get_param("last_event_id") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Problem(
            422, "request.invalid", "Last-Event-ID must be the id of an event of this job.", param="Last-Event-ID"
        )
    return int(text)
