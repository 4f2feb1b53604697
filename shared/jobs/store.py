"""Claiming, renewing, progressing and ending jobs.

Calls take the connection. Those that end jobs (``settle``, ``rescue``, ``cancel``) must run inside a transaction:
what follows for children is a further statement, and must commit with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from . import _sql
from .models import ClaimedJob, LostLease, Moved, Outcome, Wake
from .states import TERMINAL, Status

__all__ = [
    "WorkerIdentity",
    "cancel",
    "cancel_async",
    "claim",
    "due_queues",
    "heartbeat",
    "log",
    "progress",
    "rescue",
    "settle",
]

Connection = psycopg.Connection[dict[str, Any]]
AsyncConnection = psycopg.AsyncConnection[dict[str, Any]]

# Ten minutes of waiting lift a job one priority level: a low job competes with fresh high ones after 20 minutes.
AGE_SECONDS = 600.0
# BullMQ's and the flashcard seed's rule: a job may stall twice; the third time it is set aside.
MAX_STALLS = 2


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """A worker process, as heartbeats record it."""

    id: UUID
    queue: str
    host: str
    pid: int
    concurrency: int


def claim(conn: Connection, *, queue: str, worker_id: UUID, lease_seconds: float, limit: int = 1) -> list[ClaimedJob]:
    """The best due jobs of ``queue``, at most ``limit``, now leased to ``worker_id``. Empty when none is due."""
    rows = conn.execute(
        _sql.CLAIM,
        {
            "queue": queue,
            "worker_id": worker_id,
            "lease": lease_seconds,
            "limit": limit,
            # More heads than wanted, so that jobs locked by another claimer leave enough.
            "window": limit + 16,
            "age": AGE_SECONDS,
        },
    ).fetchall()
    return [ClaimedJob(**row) for row in rows]


def heartbeat(
    conn: Connection, worker: WorkerIdentity, held: Sequence[tuple[UUID, int]], lease_seconds: float
) -> list[LostLease]:
    """Renew the leases of ``held`` (job id, attempt) and say which could not be renewed."""
    rows = conn.execute(
        _sql.HEARTBEAT,
        {
            "ids": [id for id, _ in held],
            "attempts": [attempt for _, attempt in held],
            "lease": lease_seconds,
            "worker_id": worker.id,
            "queue": worker.queue,
            "host": worker.host,
            "pid": worker.pid,
            "concurrency": worker.concurrency,
        },
    ).fetchall()
    return [LostLease(r["id"], r["attempt"], Status(r["status"]) if r["status"] else None) for r in rows]


def progress(conn: Connection, id: UUID, attempt: int, worker_id: UUID, percent: int, step: str) -> int | None:
    """Record progress under the fence. The event's sequence number, or None when the job is no longer ours."""
    row = conn.execute(
        _sql.PROGRESS,
        {"id": id, "attempt": attempt, "worker_id": worker_id, "percent": max(0, min(100, percent)), "step": step},
    ).fetchone()
    return row["seq"] if row else None


def log(conn: Connection, id: UUID, attempt: int, worker_id: UUID, data: dict[str, Any]) -> int | None:
    """Keep a log line with the attempt, under the fence. None when the job is no longer ours."""
    row = conn.execute(_sql.LOG, {"id": id, "attempt": attempt, "worker_id": worker_id, "data": Jsonb(data)}).fetchone()
    return row["seq"] if row else None


def settle(conn: Connection, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
    """End attempts under the fence, with all that follows. Outcomes that are fenced off are missing in the answer."""
    rows = conn.execute(
        _sql.SETTLE,
        {
            "worker_id": worker_id,
            "ids": [o.id for o in outcomes],
            "attempts": [o.attempt for o in outcomes],
            "statuses": [o.status.value for o in outcomes],
            "kinds": [o.kind.value for o in outcomes],
            "results": [None if o.result is None else Jsonb(o.result) for o in outcomes],
            "errors": [None if o.error is None else Jsonb(dict(o.error)) for o in outcomes],
            "delays": [o.delay for o in outcomes],
            "charges": [o.charge for o in outcomes],
        },
    ).fetchall()
    return _follow(conn, rows)


def rescue(conn: Connection, *, limit: int = 500, max_stalls: int = MAX_STALLS) -> Moved:
    """Give back the jobs whose lease ran out; end those that stalled too often."""
    rows = conn.execute(_sql.RESCUE, {"limit": limit, "max_stalls": max_stalls}).fetchall()
    return _follow(conn, rows)


def cancel(conn: Connection, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
    """Cancel those of ``ids`` that have not ended, and their waiting children."""
    rows = conn.execute(_sql.CANCEL, _cancel(ids, member_id, actor, reason)).fetchall()
    return _follow(conn, rows)


async def cancel_async(
    conn: AsyncConnection, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None
) -> Moved:
    """As ``cancel``, on an event loop."""
    cursor = await conn.execute(_sql.CANCEL, _cancel(ids, member_id, actor, reason))
    rows = await cursor.fetchall()
    total = _moved(rows)
    while parents := _parents(rows):
        rows = []
        for statement in (_sql.FREE, _sql.BLOCK):
            cursor = await conn.execute(statement, {"ids": parents})
            rows += await cursor.fetchall()
        total += _moved(rows)
    return total


def due_queues(conn: Connection) -> list[tuple[str, int, UUID]]:
    """Queues with due work: name, how many jobs are due (counted to 1,000), and one of them."""
    rows = conn.execute(_DUE).fetchall()
    return [(r["queue"], r["due"], r["job_id"]) for r in rows]


# Counted to a bound, so that a deep backlog costs no more than a shallow one. The names come by a loose index scan.
_DUE = f"""
with recursive names as (
  (select queue from jobs where status = '{Status.QUEUED.value}' order by queue limit 1)
  union all
  select (select j.queue from jobs j where j.status = '{Status.QUEUED.value}' and j.queue > n.queue
           order by j.queue limit 1)
    from names n where n.queue is not null
)
select n.queue, d.due, d.job_id from names n cross join lateral (
  select count(*) as due, (array_agg(id))[1] as job_id from (
    select j.id from jobs j where j.queue = n.queue and j.status = '{Status.QUEUED.value}' and j.run_at <= now()
     limit 1000
  ) bounded
) d where n.queue is not null and d.due > 0
"""


def _cancel(ids: Sequence[UUID], member_id: UUID | None, actor: str, reason: str | None) -> dict[str, Any]:
    return {"ids": list(ids), "member_id": member_id, "actor": actor, "reason": reason}


def _moved(rows: list[dict[str, Any]]) -> Moved:
    return Moved(
        jobs=tuple((r["id"], Status(r["status"])) for r in rows if r["what"] == "moved"),
        wakes=tuple(
            Wake(r["queue"], r["id"], r["priority"]) for r in rows if r["status"] == Status.QUEUED and r["due"]
        ),
    )


def _parents(rows: list[dict[str, Any]]) -> list[UUID]:
    """Of the jobs that moved, those that ended and have children."""
    return [r["id"] for r in rows if r["what"] == "moved" and r["has_children"] and r["status"] in TERMINAL]


def _follow(conn: Connection, rows: list[dict[str, Any]]) -> Moved:
    """Carry on to children, and theirs, until nothing moves."""
    total = _moved(rows)
    while parents := _parents(rows):
        rows = []
        for statement in (_sql.FREE, _sql.BLOCK):
            rows += conn.execute(statement, {"ids": parents}).fetchall()
        total += _moved(rows)
    return total
