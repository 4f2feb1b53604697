"""Claiming, renewing, progressing and ending jobs.

Calls take the connection. Those that end jobs (``settle``, ``rescue``, ``cancel``) must run inside a transaction:
what follows for children is a further statement, and must commit with them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from . import _sql
from .models import ClaimedJob, LostLease, Moved, Outcome, Wake
from .states import TERMINAL, Hold, Status

__all__ = [
    "Claims",
    "WorkerIdentity",
    "cancel",
    "cancel_async",
    "cancel_batch",
    "cancel_batch_async",
    "claim",
    "due_queues",
    "heartbeat",
    "leave",
    "log",
    "progress",
    "release_orphans",
    "rescue",
    "reserve",
    "settle",
    "settle_plain",
    "unhold",
]

Connection = psycopg.Connection[dict[str, Any]]
AsyncConnection = psycopg.AsyncConnection[dict[str, Any]]
Rows = list[dict[str, Any]]

# Ten minutes of waiting lift a job one priority level: a low job competes with fresh high ones after 20 minutes.
AGE_SECONDS = 600.0
# BullMQ's and the flashcard seed's rule: a job may stall twice; the third time it is set aside.
MAX_STALLS = 2
# As often may a process die with it, and the second time it is set apart: the third, it was alone.
MAX_CRASHES = 2
# After a start of Postgres, workers get this long to renew or give back before leases are judged.
SETTLE_SECONDS = 3.0
# How long a process makes room for a job that runs alone, before another may.
RESERVE_SECONDS = 60.0
_CANCEL_CHUNK = 500


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """A worker process, as heartbeats record it. ``job_types``: what it has handlers for; empty is not known."""

    id: UUID
    queue: str
    host: str
    pid: int
    concurrency: int
    job_types: tuple[str, ...] = ()


class Claims(list[ClaimedJob]):
    """The jobs claimed, and what the claimer should know.

    ``alone``: a job that must run alone is due. ``limited``: the queue has limits, so that less than was asked for
    does not mean that there is no more. ``wait``: seconds until a start limit allows the next start, if one did not.
    """

    def __init__(
        self,
        jobs: Iterable[ClaimedJob] = (),
        *,
        alone: bool = False,
        limited: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(jobs)
        self.alone = alone
        self.limited = limited
        self.wait = wait


def claim(
    conn: Connection,
    *,
    queue: str,
    worker_id: UUID,
    lease_seconds: float,
    limit: int = 1,
    types: Sequence[str] | None = None,
    alone: bool = False,
) -> Claims:
    """The best due jobs of ``queue``, at most ``limit``, now leased to ``worker_id``. Empty when none may start.

    ``types``: only of these job types (those the claimer has handlers for). ``alone``: instead, the best of the jobs
    that run alone; for a process that runs nothing else until it has ended.
    """
    parameters: dict[str, Any] = {
        "queue": queue,
        "worker_id": worker_id,
        "lease": lease_seconds,
        "limit": 1 if alone else limit,
        # More heads than wanted, so that jobs locked by another claimer leave enough; of those that run alone, so that
        # ones that may not start hide none.
        "window": 500 if alone else limit + 16,
        "age": AGE_SECONDS,
        "types": None if types is None else list(types),
    }
    waiting = False
    if not alone:
        claims = _claims(conn.execute(_sql.CLAIM, parameters).fetchall())
        if not claims.limited:
            return claims
        waiting = claims.alone
    statement = _sql.CLAIM_ALONE if alone else _sql.CLAIM_LIMITED
    while True:
        with conn.transaction():
            conn.execute(_sql.LOCK, {"queue": queue})
            rows = conn.execute(statement, parameters).fetchall()
        held = rows[0]["held"]
        claims = _claims(rows)
        claims.alone = waiting
        # Where all that was in sight is held by its key, look again past it: each round sets some apart.
        if claims or not held:
            return claims


_NOT_A_JOB = ("limited", "alone", "held", "wait")


def _claims(rows: Rows) -> Claims:
    claims = Claims(alone=rows[0]["alone"], limited=rows[0]["limited"], wait=rows[0]["wait"])
    for row in rows:
        if row["id"] is not None:
            for name in _NOT_A_JOB:
                del row[name]
            claims.append(ClaimedJob(**row))
        else:
            break
    return claims


def reserve(conn: Connection, *, queue: str, worker_id: UUID, types: Sequence[str] | None = None) -> bool:
    """Announce that this process makes room for a job that must run alone. True if there is one for it."""
    row = conn.execute(
        _sql.RESERVE,
        {
            "queue": queue,
            "worker_id": worker_id,
            "seconds": RESERVE_SECONDS,
            "types": None if types is None else list(types),
        },
    ).fetchone()
    return row is not None


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
            "job_types": list(worker.job_types),
        },
    ).fetchall()
    return [LostLease(r["id"], r["attempt"], Status(r["status"]) if r["status"] else None) for r in rows]


def release_orphans(conn: Connection, worker: WorkerIdentity, held: Sequence[UUID], lease_seconds: float) -> Moved:
    """Give back the jobs that are leased to ``worker`` but are none of ``held``: it does not run them."""
    rows = conn.execute(
        _sql.RELEASE_ORPHANS,
        {"queue": worker.queue, "worker_id": worker.id, "ids": list(held), "lease": lease_seconds},
    ).fetchall()
    return _follow(conn, rows)


def leave(conn: Connection, worker_id: UUID) -> None:
    """The worker has stopped: nobody need wait for it to be missed, nor for what it had reserved."""
    with conn.transaction():
        conn.execute(
            f"""update jobs set lease_until = null, worker_id = null
                 where status = '{Status.QUEUED}' and hold = {Hold.ALONE.value} and worker_id = %(id)s""",
            {"id": worker_id},
        )
        conn.execute("delete from workers where id = %(id)s", {"id": worker_id})


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
    return _follow(conn, conn.execute(_sql.SETTLE, _settle(worker_id, outcomes)).fetchall())


def settle_plain(conn: Connection, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
    """End those of the attempts from which nothing follows, in one statement that needs no transaction around it.

    The rest (a batch's, a parent's, one that notifies or has a concurrency key) stay as they are, for ``settle``.
    """
    return _moved(conn.execute(_sql.SETTLE_PLAIN, _settle(worker_id, outcomes)).fetchall())


def _settle(worker_id: UUID, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "worker_id": worker_id,
        "ids": [o.id for o in outcomes],
        "attempts": [o.attempt for o in outcomes],
        "statuses": [o.status.value for o in outcomes],
        "kinds": [o.kind.value for o in outcomes],
        "results": [None if o.result is None else Jsonb(o.result) for o in outcomes],
        "errors": [None if o.error is None else Jsonb(dict(o.error)) for o in outcomes],
        "delays": [o.delay for o in outcomes],
        "charges": [o.charge for o in outcomes],
    }


def rescue(
    conn: Connection,
    *,
    limit: int = 500,
    max_stalls: int = MAX_STALLS,
    max_crashes: int = MAX_CRASHES,
    settle_seconds: float = SETTLE_SECONDS,
) -> Moved:
    """Give back the jobs whose lease ran out; end those that stalled, or that processes died with, too often."""
    rows = conn.execute(
        _sql.RESCUE,
        {"limit": limit, "max_stalls": max_stalls, "max_crashes": max_crashes, "settle_seconds": settle_seconds},
    ).fetchall()
    return _follow(conn, rows)


def cancel(conn: Connection, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
    """Cancel those of ``ids`` that have not ended, and their waiting children."""
    return _follow(conn, conn.execute(_sql.CANCEL, _cancel(ids, member_id, actor, reason)).fetchall())


async def cancel_async(
    conn: AsyncConnection, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None
) -> Moved:
    """As ``cancel``, on an event loop."""
    cursor = await conn.execute(_sql.CANCEL, _cancel(ids, member_id, actor, reason))
    return await _follow_async(conn, await cursor.fetchall())


def _cancel(ids: Sequence[UUID], member_id: UUID | None, actor: str, reason: str | None) -> dict[str, Any]:
    return {"ids": list(ids), "member_id": member_id, "actor": actor, "reason": reason}


# The batch's row first, so that a second cancel waits; then its jobs, and the job that its end would have started.
_CANCEL_BATCH = """
update batches set cancelled_at = coalesce(cancelled_at, now()), cancelled_by = coalesce(cancelled_by, %(member_id)s)
 where id = %(id)s and finished_at is null
returning completion_job_id
"""
_BATCH_JOBS = f"""
select id from jobs where batch_id = %(id)s and status in ('{Status.WAITING}', '{Status.QUEUED}', '{Status.PROCESSING}')
"""


def _cancel_batch(
    batch_id: UUID, member_id: UUID | None, actor: str, reason: str | None
) -> Generator[tuple[str, dict[str, Any]], Rows, Moved]:
    batch = yield _CANCEL_BATCH, {"id": batch_id, "member_id": member_id}
    if not batch:
        return Moved()
    ids = [row["id"] for row in (yield _BATCH_JOBS, {"id": batch_id})]
    if batch[0]["completion_job_id"] is not None:
        ids.insert(0, batch[0]["completion_job_id"])  # before the batch's end would start it
    total = Moved()
    for start in range(0, len(ids), _CANCEL_CHUNK):
        chunk = ids[start : start + _CANCEL_CHUNK]
        rows = yield _sql.CANCEL, _cancel(chunk, member_id, actor, reason)
        total += yield from _followers(rows)
    return total


def cancel_batch(conn: Connection, batch_id: UUID, *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
    """Cancel all that has not ended of a batch, and its completion job. Inside a transaction."""
    return _drive(conn, _cancel_batch(batch_id, member_id, actor, reason))


async def cancel_batch_async(
    conn: AsyncConnection, batch_id: UUID, *, member_id: UUID | None, actor: str, reason: str | None
) -> Moved:
    """As ``cancel_batch``, on an event loop."""
    return await _drive_async(conn, _cancel_batch(batch_id, member_id, actor, reason))


def unhold(conn: Connection) -> tuple[Wake, ...]:
    """Let jobs that were held for their concurrency key back in line where it has come free. What to wake."""
    return _wakes(conn.execute(_sql.UNHOLD_ALL, {"age": AGE_SECONDS}).fetchall())


def due_queues(conn: Connection) -> list[tuple[str, int, UUID]]:
    """Queues with due work: name, how many jobs are due (counted to 1,000), and one of them."""
    rows = conn.execute(_DUE).fetchall()
    return [(r["queue"], r["due"], r["job_id"]) for r in rows]


# Counted to a bound, so that a deep backlog costs no more than a shallow one. The names come by a loose index scan.
_DUE = f"""
with recursive names as (
  (select queue from jobs where status = '{Status.QUEUED}' and hold = 0 order by queue limit 1)
  union all
  select (select j.queue from jobs j where j.status = '{Status.QUEUED}' and j.hold = 0 and j.queue > n.queue
           order by j.queue limit 1)
    from names n where n.queue is not null
), counted as (
  select n.queue, d.due, d.job_id from names n cross join lateral (
    select count(*) as due, (array_agg(id))[1] as job_id from (
      select j.id from jobs j
       where j.queue = n.queue and j.status = '{Status.QUEUED}' and j.hold = 0 and j.run_at <= now() limit 1000
    ) bounded
  ) d where n.queue is not null and d.due > 0
  union all
  select queue, count(*), (array_agg(id))[1] from jobs
   where status = '{Status.QUEUED}' and hold = {Hold.ALONE.value} and run_at <= now() group by queue
)
select queue, sum(due)::int as due, (array_agg(job_id))[1] as job_id from counted group by queue
"""


def _wakes(rows: Rows) -> tuple[Wake, ...]:
    return tuple(Wake(r["queue"], r["id"], r["priority"]) for r in rows if r["due"])


def _moved(rows: Rows) -> Moved:
    return Moved(
        jobs=tuple((r["id"], Status(r["status"])) for r in rows if r["what"] == "moved"),
        wakes=_wakes([r for r in rows if r["status"] == Status.QUEUED]),
    )


def _followers(rows: Rows) -> Generator[tuple[str, dict[str, Any]], Rows, Moved]:
    """What follows from jobs that moved: their children and theirs until nothing moves, completion jobs of batches,
    and jobs held for a concurrency key that came free."""
    total = _moved(rows)
    keys = {
        (r["queue"], r["org_id"], r["concurrency_key"])
        for r in rows
        if r["what"] == "moved" and r["concurrency_key"] is not None
    }
    while rows:
        parents = [r["id"] for r in rows if r["what"] == "moved" and r["has_children"] and r["status"] in TERMINAL]
        completions = [r["id"] for r in rows if r["what"] == "batch"]
        rows = []
        if parents:
            rows += yield _sql.FREE, {"ids": parents}
            rows += yield _sql.BLOCK, {"ids": parents}
        if completions:
            rows += yield _sql.COMPLETE_BATCH, {"ids": completions}
        total += _moved(rows)
    if keys:
        queues, org_ids, names = (list(column) for column in zip(*keys, strict=True))
        freed = yield _sql.UNHOLD, {"queues": queues, "org_ids": org_ids, "keys": names, "age": AGE_SECONDS}
        total += Moved(wakes=_wakes(freed))
    return total


Statements = Generator[tuple[str, dict[str, Any]], Rows, Moved]


def _follow(conn: Connection, rows: Rows) -> Moved:
    return _drive(conn, _followers(rows))


async def _follow_async(conn: AsyncConnection, rows: Rows) -> Moved:
    return await _drive_async(conn, _followers(rows))


def _drive(conn: Connection, statements: Statements) -> Moved:
    """Run the statements that a generator yields, giving it their rows, until it returns."""
    try:
        sql, parameters = next(statements)
        while True:
            sql, parameters = statements.send(conn.execute(sql, parameters).fetchall())
    except StopIteration as end:
        moved: Moved = end.value
        return moved


async def _drive_async(conn: AsyncConnection, statements: Statements) -> Moved:
    try:
        sql, parameters = next(statements)
        while True:
            cursor = await conn.execute(sql, parameters)
            sql, parameters = statements.send(await cursor.fetchall())
    except StopIteration as end:
        moved: Moved = end.value
        return moved
