"""Accepting jobs: validation, then one statement. The same for threads and for the gateway's event loop.

The caller owns the transaction, so that what belongs to the job (a document row, an idempotency key)
commits with it or not at all. Nothing is sent to a broker here: publish ``Accepted.wakes`` after the commit.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from shared.contracts import JOB_TYPES, Registry

from . import _sql
from ._circles import refuse_circles
from ._validation import validate, validate_batch
from .errors import InvalidSubmit
from .models import NewBatch, NewJob, ParentEdge, Wake
from .states import TERMINAL, Status

__all__ = ["Accepted", "insert_batch", "insert_batch_async", "submit", "submit_async", "validate"]

_INSERT_BATCH = """
insert into batches (id, org_id, created_by, kind, total, metadata, webhook_url)
values (%(id)s, %(org_id)s, %(created_by)s, %(kind)s, %(total)s, %(metadata)s, %(webhook_url)s)
returning *
"""
# An unfinished batch without a completion job gets this one. Its row lock makes the batch's end wait, or be seen.
_COMPLETION = """
update batches set completion_job_id = %(job_id)s
 where id = %(id)s and org_id = %(org_id)s and completion_job_id is null
returning finished_at is not null as finished
"""

Rows = list[dict[str, Any]]
Statements = Generator[tuple[str, dict[str, Any]], Rows, "Accepted"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was stored of each job, in the order given, and what to wake once the transaction has committed.

    A row has id, type, queue, status, priority, run_at and created_at. Where ``Unique`` let another job stand for one,
    the row is that job's; its id is among ``existing`` if it was accepted before, and not by the same submit.
    """

    rows: Rows
    wakes: list[Wake]
    existing: frozenset[UUID] = frozenset()


def _pending(job: NewJob, inside: Mapping[UUID, UUID], outside: Mapping[UUID, Mapping[str, Any]]) -> int:
    """How many parents ``job`` has to wait for. Raises InvalidSubmit for those it cannot wait for.

    ``inside``: the organisations of the jobs of this submit. ``outside``: parents accepted before.
    """
    pending = 0
    for edge in job.parents:
        if inside.get(edge.parent_id) == job.org_id:
            pending += 1
            continue
        parent = outside.get(edge.parent_id)
        if parent is None or parent["org_id"] != job.org_id:
            raise InvalidSubmit("job.unknown_parent", "depends_on", "names a job that does not exist")
        status = Status(parent["status"])
        if status in (Status.FAILED, Status.CANCELLED) and edge.on_failure != "run":
            raise InvalidSubmit("job.parent_ended", "depends_on", f"names a job that has {status.value}")
        pending += status not in TERMINAL
    return pending


def _row(job: NewJob, registry: Registry, pending: int, has_children: bool) -> dict[str, Any]:
    """The values of _sql.COLUMNS."""
    return {
        "id": job.id,
        "org_id": job.org_id,
        "created_by": job.created_by,
        "type": job.type,
        "queue": registry.get(job.type).queue,
        "priority": int(job.priority),
        "max_retries": job.max_retries,
        "time_limit": job.time_limit,
        "run_at": job.run_at,
        "batch_id": job.batch_id,
        "payload": Jsonb(job.payload),
        "metadata": Jsonb(dict(job.metadata)) if job.metadata else _EMPTY,
        "webhook_url": job.webhook_url,
        "notify_email": job.notify_email,
        "pending_parents": pending,
        "has_children": has_children,
        "concurrency_key": job.concurrency_key,
        "concurrency_limit": job.concurrency_limit,
        "unique_key": None if job.unique is None else job.unique.key,
    }


_EMPTY = Jsonb({})
# What the columns have by themselves, where a job says nothing.
_DEFAULTS: dict[str, Any] = {
    "created_by": None,
    "batch_id": None,
    "metadata": _EMPTY,
    "webhook_url": None,
    "notify_email": None,
    "pending_parents": 0,
    "has_children": False,
    "concurrency_key": None,
    "concurrency_limit": 1,
    "unique_key": None,
}


def _needs_transaction(jobs: Sequence[NewJob]) -> bool:
    """Does the submit look at other rows first, so that it is more than one statement?"""
    inside = {job.id for job in jobs}
    return any(
        job.unique is not None
        or job.after_batch is not None
        or any(edge.parent_id not in inside for edge in job.parents)
        for job in jobs
    )


def _unique(jobs: Sequence[NewJob]) -> Generator[tuple[str, dict[str, Any]], Rows, dict[UUID, dict[str, Any]]]:
    """The earlier jobs that stand for some of ``jobs``, by the id of those. Raises InvalidSubmit for the refused."""
    keyed = [(job, job.unique) for job in jobs if job.unique is not None]
    if not keyed:
        return {}
    yield (
        _sql.LOCK_UNIQUE,
        {"org_ids": [job.org_id for job, _ in keyed], "keys": [unique.key for _, unique in keyed]},
    )
    standing: dict[UUID, dict[str, Any]] = {}
    new: dict[tuple[UUID, str], list[NewJob]] = {}
    looked_up: dict[Any, Rows] = {}
    sure = {job.id for job in jobs if job.unique is None or job.unique.on_conflict != "return"}
    for job, unique in keyed:
        twins = [twin for twin in new.get((job.org_id, unique.key), ()) if unique.statuses & _begins_as(twin, sure)]
        existing: dict[str, Any] | None = None
        if twins:  # younger than what was accepted before
            existing = {"id": max(twin.id for twin in twins)}
        else:
            scope = (job.org_id, unique.key, unique.statuses, unique.period)
            if scope not in looked_up:
                looked_up[scope] = yield (
                    _sql.UNIQUE,
                    {
                        "org_id": job.org_id,
                        "key": unique.key,
                        "statuses": [status.value for status in unique.statuses],
                        "period": unique.period,
                    },
                )
            existing = next(iter(looked_up[scope]), None)
        if existing is None:
            new.setdefault((job.org_id, unique.key), []).append(job)
        elif unique.on_conflict == "reject":
            raise InvalidSubmit(
                "job.duplicate", "unique_key", "there is a job with this key already", existing=existing["id"]
            )
        else:
            standing[job.id] = existing
    return standing


_QUEUED, _WAITING = frozenset({Status.QUEUED}), frozenset({Status.WAITING})


def _begins_as(job: NewJob, sure: set[UUID]) -> frozenset[Status]:
    """The statuses that a new job may have. ``sure``: jobs of the submit that nothing stands for."""
    if not job.parents and job.after_batch is None:
        return _QUEUED
    if any(edge.parent_id in sure for edge in job.parents):
        return _WAITING
    return _QUEUED | _WAITING  # what it waits for may have ended


def _plan(jobs: Sequence[NewJob], registry: Registry) -> Statements:
    """The statements of a submit, one after another; the caller runs each and sends its rows back."""
    valid = [validate(job, registry) for job in jobs]
    if len(valid) > 1:
        if len({job.id for job in valid}) < len(valid):
            raise InvalidSubmit("job.invalid", "id", "two jobs have the same id")
        refuse_circles(valid)
    standing = yield from _unique(valid)
    new = [job for job in valid if job.id not in standing]
    if standing:
        new = [_with_moved_edges(job, standing) for job in new]
        refuse_circles(new)
    inside = {job.id: job.org_id for job in new}
    parents = {edge.parent_id for job in new for edge in job.parents}
    outside: dict[UUID, dict[str, Any]] = {}
    if wanted := sorted(parents - inside.keys()):
        rows = yield _sql.ADOPT, {"ids": wanted, "org_ids": list(set(inside.values()))}
        outside = {row["id"]: row for row in rows}
    values = []
    for job in new:
        pending = _pending(job, inside, outside) if job.parents else 0
        if job.after_batch is not None:
            pending += yield from _await_batch(job, job.after_batch)
        values.append(_row(job, registry, pending, job.id in parents))
    if outside or any(job.after_batch is not None for job in new):
        yield from _refuse_circles_outside(new, outside)
    edges = [(job.id, e) for job in new for e in job.parents]
    if len(values) == 1 and not edges:
        stored = yield _sql.submit_one(values[0], _DEFAULTS), values[0]
    elif values:
        columns: dict[str, Any] = {name: [row[name] for row in values] for name in _sql.COLUMNS}
        columns["child_ids"] = [child for child, _ in edges]
        columns["parent_ids"] = [e.parent_id for _, e in edges]
        columns["on_failure"] = [e.on_failure for _, e in edges]
        if batches := {(job.batch_id, job.org_id) for job in new if job.batch_id is not None}:
            columns["own_batches"] = [batch for batch, _ in batches]
            columns["own_orgs"] = [org for _, org in batches]
        stored = yield _sql.SUBMIT_IN_BATCH if batches else _sql.SUBMIT, columns
    else:
        stored = []
    if values and not stored:
        raise InvalidSubmit("job.unknown_batch", "batch_id", "names a batch that does not exist")
    return _accepted(valid, stored, standing)


def _with_moved_edges(job: NewJob, standing: Mapping[UUID, dict[str, Any]]) -> NewJob:
    """``job``, waiting for the jobs that stand for its parents. Of two edges that become one, the one that does not
    run whatever happens counts, and of such the first."""
    if not any(edge.parent_id in standing for edge in job.parents):
        return job
    edges: dict[UUID, ParentEdge] = {}
    for edge in job.parents:
        if edge.parent_id in standing:
            edge = replace(edge, parent_id=standing[edge.parent_id]["id"])
        if edge.parent_id == job.id:
            raise InvalidSubmit(
                "job.dependency_cycle", "depends_on", "by its parent's unique key, the job would wait for itself"
            )
        if edge.parent_id not in edges or edges[edge.parent_id].on_failure == "run":
            edges[edge.parent_id] = edge
    return replace(job, parents=tuple(edges.values()))


def _refuse_circles_outside(
    jobs: Sequence[NewJob], outside: Mapping[UUID, Mapping[str, Any]]
) -> Generator[tuple[str, dict[str, Any]], Rows, None]:
    """Circles that lead through jobs accepted before: those wait for a new job only where one is a batch's completion
    job, and the new job is of that batch. Runs nothing unless such a circle is possible."""
    awaited = {job.after_batch for job in jobs}  # their completion jobs are new
    batches = {job.batch_id for job in jobs if job.batch_id is not None} - awaited
    if not batches:
        return
    waiting = [id for id, parent in outside.items() if parent["status"] == Status.WAITING]
    waiting += [job.id for job in jobs if job.after_batch is not None]
    if not waiting:
        return
    yield _sql.LOCK_CIRCLES, {"org_ids": list({job.org_id for job in jobs})}
    found: dict[UUID, list[UUID]] = {}
    for row in (yield _sql.BEHIND_BATCHES, {"batch_ids": list(batches), "ids": waiting}):
        found.setdefault(row["id"], []).append(row["batch_id"])
    if found:
        refuse_circles(jobs, found)


def _await_batch(job: NewJob, batch_id: UUID) -> Generator[tuple[str, dict[str, Any]], Rows, int]:
    rows = yield _COMPLETION, {"id": batch_id, "org_id": job.org_id, "job_id": job.id}
    if not rows:
        raise InvalidSubmit(
            "job.unknown_batch", "after_batch", "names a batch that does not exist or has a completion job already"
        )
    return 0 if rows[0]["finished"] else 1


def _accepted(jobs: Sequence[NewJob], rows: Rows, standing: Mapping[UUID, dict[str, Any]]) -> Accepted:
    wakes = [
        Wake(row["queue"], row["id"], row["priority"])
        for row in rows
        if row["status"] == Status.QUEUED and row["run_at"] <= row["created_at"]
    ]
    if len(rows) == 1 and not standing:
        return Accepted(rows, wakes)
    by_id = {row["id"]: row for row in rows}
    existing = set()
    for id, row in standing.items():
        if row["id"] in by_id:  # new, of this submit
            row = by_id[row["id"]]
        else:
            existing.add(row["id"])
        by_id[id] = row
    return Accepted([by_id[job.id] for job in jobs], wakes, frozenset(existing))


def submit(
    conn: psycopg.Connection[dict[str, Any]], jobs: Sequence[NewJob], registry: Registry = JOB_TYPES
) -> Accepted:
    """Accept jobs on ``conn``, all or none; in a transaction of its own where it takes more than one statement.

    Raises InvalidSubmit, with nothing written. That an id is taken is found by Postgres: a transaction of the caller's
    around this cannot go on then.
    """
    if _needs_transaction(jobs):
        with conn.transaction():
            return _drive(conn, _plan(jobs, registry))
    return _drive(conn, _plan(jobs, registry))


def _drive(conn: psycopg.Connection[dict[str, Any]], statements: Statements) -> Accepted:
    try:
        sql, parameters = next(statements)
        while True:
            sql, parameters = statements.send(conn.execute(sql, parameters).fetchall())
    except StopIteration as end:
        accepted: Accepted = end.value
        return accepted
    except psycopg.errors.UniqueViolation as e:
        raise _taken(e) from None


async def submit_async(
    conn: psycopg.AsyncConnection[dict[str, Any]], jobs: Sequence[NewJob], registry: Registry = JOB_TYPES
) -> Accepted:
    """As ``submit``, on an event loop."""
    if _needs_transaction(jobs):
        async with conn.transaction():
            return await _drive_async(conn, _plan(jobs, registry))
    return await _drive_async(conn, _plan(jobs, registry))


async def _drive_async(conn: psycopg.AsyncConnection[dict[str, Any]], statements: Statements) -> Accepted:
    try:
        sql, parameters = next(statements)
        while True:
            cursor = await conn.execute(sql, parameters)
            sql, parameters = statements.send(await cursor.fetchall())
    except StopIteration as end:
        accepted: Accepted = end.value
        return accepted
    except psycopg.errors.UniqueViolation as e:
        raise _taken(e) from None


def _taken(error: psycopg.errors.UniqueViolation) -> Exception:
    """A primary key that exists, as the refusal that it is; any other error as it was."""
    if any(name in str(error) for name in ("jobs_pkey", "batches_pkey")):
        return InvalidSubmit("job.invalid", "id", "is taken already")
    return error


def _batch(batch: NewBatch) -> dict[str, Any]:
    validate_batch(batch)
    return {
        "id": batch.id,
        "org_id": batch.org_id,
        "created_by": batch.created_by,
        "kind": batch.kind,
        "total": batch.total,
        "metadata": Jsonb(dict(batch.metadata)),
        "webhook_url": batch.webhook_url,
    }


def insert_batch(conn: psycopg.Connection[dict[str, Any]], batch: NewBatch) -> dict[str, Any]:
    """The batch's row; submit its jobs after it, in the same transaction. Raises InvalidSubmit."""
    try:
        row = conn.execute(_INSERT_BATCH, _batch(batch)).fetchone()
    except psycopg.errors.UniqueViolation as e:
        raise _taken(e) from None
    assert row is not None
    return row


async def insert_batch_async(conn: psycopg.AsyncConnection[dict[str, Any]], batch: NewBatch) -> dict[str, Any]:
    """As ``insert_batch``, on an event loop."""
    try:
        row = await (await conn.execute(_INSERT_BATCH, _batch(batch))).fetchone()
    except psycopg.errors.UniqueViolation as e:
        raise _taken(e) from None
    assert row is not None
    return row
