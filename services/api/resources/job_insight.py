"""What may be asked about jobs: why one is where it is, what its attempts did, how many there are, how queues go."""

from __future__ import annotations

import falcon.asgi

from shared.contracts import JOB_TYPES
from shared.ids import IdKind, decode
from shared.jobs import attempts_async, job_stats_async, queue_figures_async, why_async
from shared.jobs.views import attempts_json, queue_json, stats_json, why_json

from ..auth import Caller, requires
from ..deps import Deps
from ..errors import Problem, not_found
from .jobs import find_job

__all__ = ["JobAttempts", "JobStats", "JobWhy", "Queues"]

DEFAULT_ATTEMPTS = 20
MAX_ATTEMPTS = 50


class JobWhy:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        caller: Caller = req.context.caller
        async with self._deps.pool.connection() as conn:
            found = await why_async(conn, decode(IdKind.JOB, job_id), caller.viewer)
        if found is None:
            raise not_found("job")
        resp.media = {"job_id": job_id, **why_json(found)}


class JobAttempts:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        caller: Caller = req.context.caller
        limit = _number(req, "limit", MAX_ATTEMPTS) or DEFAULT_ATTEMPTS
        before = _number(req, "cursor", (1 << 31) - 1)
        row = await find_job(self._deps, caller, job_id)
        async with self._deps.pool.connection() as conn:
            found = await attempts_async(conn, row["id"], caller.viewer, before=before, limit=limit)
        resp.media = {"job_id": job_id, **attempts_json(found)}


class JobStats:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        caller: Caller = req.context.caller
        async with self._deps.pool.connection() as conn:
            # Mails and webhooks that jobs owe are jobs too; they are left out, as in the list.
            found = await job_stats_async(conn, caller.viewer, [t.name for t in JOB_TYPES.all() if t.public])
        resp.media = stats_json(found)


class Queues:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        caller: Caller = req.context.caller
        if caller.viewer.role not in ("admin", "super_admin"):
            raise Problem(403, "auth.forbidden", "The figures of queues are for administrators.")
        async with self._deps.pool.connection() as conn:
            found = await queue_figures_async(conn, JOB_TYPES.queues())
        resp.media = {"items": [queue_json(f) for f in found]}


def _number(req: falcon.asgi.Request, name: str, most: int) -> int | None:
    """Raises Problem naming the parameter."""
    text = req.get_param(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= most:
        return int(text)
    raise Problem(422, "request.invalid", f"{name} must be a number from 1 to {most}.", param=name)
