"""How long jobs are kept once they have ended, and deleting them after that, a small transaction at a time.

Any number of processes may do it at once: each passes over the rows that another holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from ._sql import retention as sql
from ._sql.retention import id_before
from ._steps import Connection, Steps, run
from .queries import Query
from .states import TERMINAL, Status

__all__ = [
    "CHUNK",
    "Keep",
    "deleting",
    "id_before",
    "prune_batches",
    "prune_idempotency_keys",
    "prune_jobs",
    "prune_jobs_beyond_count",
    "prune_start_buckets",
    "prune_workers",
]

CHUNK = 500  # rows a transaction


@dataclass(frozen=True, slots=True)
class Keep:
    """How long ended jobs are kept where their organisation does not say otherwise. ``count``: how many completed and
    cancelled jobs an organisation keeps, the newest (0: all)."""

    hours: float = 24.0
    dead_letter_hours: float = 168.0
    count: int = 0


def prune_jobs(conn: Connection, keep: Keep, *, limit: int = CHUNK) -> int:
    """Delete up to ``limit`` ended jobs past their time, with their events and edges. How many went.

    Kept are those that a child which has not ended names, those whose batch has not finished, and those that would
    come back with a dead letter. No transaction may be open on ``conn``: this is one.
    """
    with conn.transaction():
        rows = conn.execute(
            sql.DUE_BY_AGE, {"hours": keep.hours, "dead_letter_hours": keep.dead_letter_hours, "limit": limit}
        ).fetchall()
        return run(conn, deleting([row["id"] for row in rows], TERMINAL))


def prune_jobs_beyond_count(conn: Connection, keep: Keep, *, limit: int = CHUNK) -> int:
    """As ``prune_jobs``, for completed and cancelled jobs beyond the newest that each organisation keeps.

    Costs a walk over the index entries of as many jobs as are kept, for each organisation that has such a limit.
    """
    with conn.transaction():
        rows = conn.execute(sql.DUE_BY_COUNT, {"count": keep.count, "limit": limit}).fetchall()
        return run(conn, deleting([row["id"] for row in rows], [Status.COMPLETED, Status.CANCELLED]))


def deleting(ids: Sequence[UUID], statuses: frozenset[Status] | Sequence[Status]) -> Steps[int]:
    """Delete those of the jobs, in one of ``statuses``, that are free and that nothing needs. How many went."""
    if not ids:
        return 0
    names = [s.value for s in sorted(statuses)]
    rows = yield Query(sql.LOCK, {"ids": list(ids), "statuses": names})
    rows = yield Query(sql.DELETE, {"ids": [row["id"] for row in rows], "statuses": names})
    gone = {"ids": [row["id"] for row in rows]}
    if rows:
        yield Query(sql.DELETE_EVENTS, gone)
        yield Query(sql.DELETE_EDGES, gone)
    return len(rows)


def prune_batches(conn: Connection, keep: Keep, *, limit: int = CHUNK) -> int:
    """Delete finished batches past their time whose jobs have all gone."""
    return conn.execute(sql.DELETE_BATCHES, {"hours": keep.hours, "limit": limit}).rowcount


def prune_idempotency_keys(conn: Connection, keep: Keep, *, limit: int = CHUNK) -> int:
    """Delete keys as old as jobs get, and a day at least: a client that repeats a request does so sooner."""
    return conn.execute(sql.DELETE_KEYS, {"hours": keep.hours, "limit": limit}).rowcount


def prune_workers(conn: Connection, *, limit: int = CHUNK, settle_seconds: float = 600.0) -> int:
    """Delete worker processes that have not been heard of for an hour; nobody in the ``settle_seconds`` after a start
    of Postgres."""
    return conn.execute(sql.DELETE_WORKERS, {"limit": limit, "settle_seconds": settle_seconds}).rowcount


def prune_start_buckets(conn: Connection, *, limit: int = CHUNK) -> int:
    """Delete start-rate buckets that nothing was taken from for a day."""
    return conn.execute(sql.DELETE_BUCKETS, {"limit": limit}).rowcount
