"""Batches: how far many jobs are that were accepted together."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import falcon.asgi
import psycopg

from shared.ids import IdKind, decode, encode
from shared.jobs import TERMINAL, Status, queries
from shared.jobs.queries import Viewer
from shared.jobs.views import API_PREFIX, job_json

from ..auth import requires
from ..deps import Deps
from ..errors import not_found

__all__ = ["Batch", "batch_json", "load_batch"]

# Jobs shown inside a batch; the rest is at GET /jobs?batch_id=….
SHOWN_JOBS = 200


async def load_batch(
    conn: psycopg.AsyncConnection[dict[str, Any]], viewer: Viewer, batch_id: UUID
) -> dict[str, Any] | None:
    """A batch as the API shows it, or None."""
    query = queries.get_batch(viewer, batch_id)
    row = await (await conn.execute(query.sql, query.parameters)).fetchone()
    if row is None:
        return None
    counts = await (await conn.execute(queries.BATCH_COUNTS, {"batch_id": batch_id})).fetchall()
    query = queries.list_jobs(viewer, queries.JobFilter(batch_id=batch_id), before=None, limit=SHOWN_JOBS)
    jobs = queries.listed(await (await conn.execute(query.sql, query.parameters)).fetchall(), SHOWN_JOBS)
    return batch_json(row, counts, jobs.rows)


def batch_json(row: dict[str, Any], counts: list[dict[str, Any]], jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """``counts`` are the rows of queries.BATCH_COUNTS; ``jobs`` come newest first."""
    batch_id = encode(IdKind.BATCH, row["id"])
    path = f"{API_PREFIX}/batches/{batch_id}"
    by_status = dict.fromkeys((s.value for s in Status), 0)
    by_type: dict[str, dict[str, int]] = {}
    percent = 0
    for c in counts:
        by_status[c["status"]] += c["jobs"]
        of_type = by_type.setdefault(c["type"], {"total": 0, "completed": 0, "failed": 0, "cancelled": 0})
        of_type["total"] += c["jobs"]
        if c["status"] in TERMINAL:
            of_type[c["status"]] += c["jobs"]
        percent += 100 * c["jobs"] if c["status"] in TERMINAL else c["progress"]
    done = sum(by_status[s] for s in TERMINAL)
    return {
        "id": batch_id,
        "kind": row["kind"],
        "done": done >= row["total"],
        "total": row["total"],
        "counts": by_status,
        "by_type": by_type,
        "progress": {
            "percent": percent // max(1, row["total"]),
            "step": f"{done} of {row['total']} steps done",
        },
        "created_at": row["created_at"],
        "finished_at": row["finished_at"],
        "metadata": row["metadata"],
        "jobs": [job_json(j) for j in reversed(jobs)],
        "links": {"self": path, "jobs": f"{API_PREFIX}/jobs?batch_id={batch_id}"},
    }


class Batch:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("jobs:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, batch_id: str) -> None:
        async with self._deps.pool.connection() as conn:
            batch = await load_batch(conn, req.context.caller.viewer, decode(IdKind.BATCH, batch_id))
        if batch is None:
            raise not_found("batch")
        if not batch["done"]:
            resp.set_header("Retry-After", "1")
        resp.media = batch
