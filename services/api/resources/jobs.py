"""Jobs: get, list, result, cancel."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import falcon
import falcon.asgi
import orjson

from shared.contracts import JOB_TYPES
from shared.ids import IdKind, InvalidId, decode, encode
from shared.jobs import Priority, Status, queries
from shared.jobs.store import cancel_async
from shared.jobs.views import job_json

from ..auth import Caller, requires
from ..deps import Deps
from ..errors import Problem, not_found
from ..pages import page_request

__all__ = ["Job", "JobCancel", "JobResult", "Jobs", "find_job"]

# How long a poller is asked to wait, in seconds.
POLL_SECONDS = 1


async def find_job(deps: Deps, caller: Caller, job_id: str, *, with_result: bool = False) -> dict[str, Any]:
    """The row of a job that the caller may see. Raises Problem 404."""
    query = queries.get_job(caller.viewer, decode(IdKind.JOB, job_id), with_result=with_result)
    async with deps.pool.connection() as conn:
        row = await (await conn.execute(query.sql, query.parameters)).fetchone()
    if row is None:
        raise not_found("job")
    return row


class Jobs:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        before, limit = page_request(req, IdKind.JOB)
        query = queries.list_jobs(req.context.caller.viewer, _filter(req), before=before, limit=limit)
        async with self._deps.pool.connection() as conn:
            rows = await (await conn.execute(query.sql, query.parameters)).fetchall()
        found = queries.listed(rows, limit)
        resp.media = {
            "items": [job_json(r) for r in found.rows],
            "has_more": found.before is not None,
            "next_cursor": None if found.before is None else encode(IdKind.JOB, found.before),
        }


class Job:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        job = job_json(await find_job(self._deps, req.context.caller, job_id))
        body = orjson.dumps(job, option=orjson.OPT_UTC_Z)
        # Everything shown is in the body, so its hash is a strong validator.
        etag = resp.etag = hashlib.blake2b(body, digest_size=12).hexdigest()
        if not job["done"]:
            resp.set_header("Retry-After", str(POLL_SECONDS))
        if req.if_none_match and any(str(t).strip('"') in (etag, "*") for t in req.if_none_match):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = falcon.MEDIA_JSON
        resp.data = body

    @requires("jobs:write")
    async def on_delete(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        await _cancel(self._deps, req, resp, job_id)


class JobCancel:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:write")
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        await _cancel(self._deps, req, resp, job_id)


class JobResult:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
        row = await find_job(self._deps, req.context.caller, job_id, with_result=True)
        job = job_json(row)
        if not job["done"]:
            raise Problem(
                409,
                "job.not_done",
                f"The job is {job['status']}; its result is there once it has completed.",
                headers={"Retry-After": str(POLL_SECONDS)},
            )
        if row["status"] != Status.COMPLETED:
            reason = job["error"]["message"] if job["error"] else f"It was {job['status']}."
            raise Problem(409, "job.no_result", f"The job has no result: {reason}")
        resp.media = {
            "job_id": job["id"],
            "type": job["type"],
            "finished_at": job["finished_at"],
            "result": row["result"],
        }


async def _cancel(deps: Deps, req: falcon.asgi.Request, resp: falcon.asgi.Response, job_id: str) -> None:
    caller: Caller = req.context.caller
    row = await find_job(deps, caller, job_id)
    reason = req.get_param("reason") or ""
    async with deps.pool.connection() as conn, conn.transaction():
        moved = await cancel_async(
            conn,
            [row["id"]],
            member_id=caller.viewer.member_id,
            actor=caller.actor,
            reason="".join(c for c in reason if c.isprintable())[:200] or None,
        )
    deps.publisher.moved(moved)
    after = job_json(await find_job(deps, caller, job_id))
    if not moved.jobs and after["status"] != Status.CANCELLED:
        raise Problem(409, "job.already_done", f"The job has already {after['status']}, so it cannot be cancelled.")
    resp.media = after


def _filter(req: falcon.asgi.Request) -> queries.JobFilter:
    """Raises Problem naming the query parameter."""
    statuses = []
    for wanted in req.get_param_as_list("status", delimiter=",") or []:
        try:
            statuses.append(Status(wanted))
        except ValueError:
            raise _bad("status", f"must be one of {', '.join(Status)}") from None
    type_ = req.get_param("type")
    known = [t.name for t in JOB_TYPES.all()]
    if type_ is not None and type_ not in known:
        raise _bad("type", f"must be one of {', '.join(known)}")
    priority = None
    text: str | None
    if (text := req.get_param("priority")) is not None:
        try:
            priority = Priority.of(text)
        except ValueError:
            raise _bad("priority", f"must be one of {', '.join(p.label for p in Priority)}") from None
    batch: UUID | None = None
    if (text := req.get_param("batch_id")) is not None:
        try:
            batch = decode(IdKind.BATCH, text)
        except InvalidId:
            raise _bad("batch_id", "must be the id of a batch, bat_…") from None
    return queries.JobFilter(
        statuses=statuses,
        # Mails and webhooks that jobs owe are jobs too; they are listed when asked for by type.
        types=[type_] if type_ is not None else [t.name for t in JOB_TYPES.all() if t.public],
        batch_id=batch,
        priority=priority,
        created_after=_time(req, "created_after"),
        created_before=_time(req, "created_before"),
    )


def _time(req: falcon.asgi.Request, name: str) -> datetime | None:
    text = req.get_param(name)
    if text is None:
        return None
    # A plus sign that was not escaped arrives as a space: "…T08:00:00 01:00".
    if "T" in text:
        text = text.replace(" ", "+")
    try:
        value = datetime.fromisoformat(text)
        if value.tzinfo is not None:
            # PostgreSQL takes fewer zones than Python does; all of them in UTC.
            return value.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _bad(name, "must be a time with its zone, for example 2026-01-31T08:00:00Z")


def _bad(param: str, rule: str) -> Problem:
    return Problem(422, "request.invalid", f"{param} {rule}.", param=param)
