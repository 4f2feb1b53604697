"""Accepting jobs: validation, then one statement. The same for threads and for the gateway's event loop.

The caller owns the transaction, so that what belongs to the job (a document row, an idempotency key)
commits with it or not at all. Nothing is sent to a broker here: publish ``Accepted.wakes`` after the commit.
"""

from __future__ import annotations

import graphlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from shared.contracts import JOB_TYPES, Registry, UnknownJobType

from . import _sql
from .errors import InvalidSubmit
from .models import NewBatch, NewJob, ParentEdge, Unique, Wake
from .states import TERMINAL, Priority, Status

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

MAX_TIME_LIMIT = 3600.0
MAX_RETRIES = 25
MAX_KEY = 200  # characters
MAX_AHEAD = timedelta(days=366)

Rows = list[dict[str, Any]]
Statements = Generator[tuple[str, dict[str, Any]], Rows, "Accepted"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was stored of each job, in the order given, and what to wake once the transaction has committed.

    A row has id, type, queue, status, priority, run_at and created_at. Where ``Unique`` let an earlier job stand for
    one, the row is that job's; its id is among ``existing``.
    """

    rows: Rows
    wakes: list[Wake]
    existing: frozenset[UUID] = frozenset()


def validate(job: NewJob, registry: Registry = JOB_TYPES) -> NewJob:
    """The job with its type's own name and defaults filled in. Raises InvalidSubmit naming the field."""
    try:
        job_type = registry.get(job.type)
    except UnknownJobType:
        known = ", ".join(t.name for t in registry.all() if t.public)
        raise InvalidSubmit("job.unknown_type", "type", f"no job type {job.type!r}; there are: {known}") from None
    try:
        payload = job_type.payload.model_validate(job.payload)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in ("payload", *first["loc"]))
        raise InvalidSubmit("job.invalid_payload", where, str(first["msg"])) from None
    if job.priority not in _PRIORITIES:
        raise InvalidSubmit("job.invalid", "priority", "must be high, normal or low")
    max_retries = job_type.policy.max_retries if job.max_retries is None else job.max_retries
    if not 0 <= max_retries <= MAX_RETRIES:
        raise InvalidSubmit("job.invalid", "max_retries", f"must be between 0 and {MAX_RETRIES}")
    time_limit = job_type.policy.time_limit if job.time_limit is None else job.time_limit
    if not 0 < time_limit <= MAX_TIME_LIMIT:
        raise InvalidSubmit("job.invalid", "time_limit", f"must be above 0 and at most {MAX_TIME_LIMIT:.0f} seconds")
    if job.run_at is not None:
        _check_time(job.run_at)
    if job.concurrency_key is not None:
        _check_key("concurrency_key", job.concurrency_key)
        if not 1 <= job.concurrency_limit <= 10_000:
            raise InvalidSubmit("job.invalid", "concurrency_limit", "must be between 1 and 10000")
    if job.unique is not None:
        _check_unique(job, job.unique)
    if job.parents:
        _check_parents(job)
    return NewJob(
        id=job.id,
        type=job_type.name,
        payload=payload.model_dump(mode="json"),
        org_id=job.org_id,
        created_by=job.created_by,
        priority=job.priority,
        run_at=job.run_at,
        max_retries=max_retries,
        time_limit=time_limit,
        batch_id=job.batch_id,
        metadata=job.metadata,
        webhook_url=job.webhook_url,
        notify_email=job.notify_email,
        parents=job.parents,
        concurrency_key=job.concurrency_key,
        concurrency_limit=job.concurrency_limit,
        unique=job.unique,
        after_batch=job.after_batch,
    )


_PRIORITIES = frozenset(Priority)


def _check_time(run_at: datetime) -> None:
    if run_at.tzinfo is None:
        raise InvalidSubmit("job.invalid", "run_at", "must carry a time zone, for example 2026-01-31T08:00:00Z")
    if run_at > datetime.now(UTC) + MAX_AHEAD:
        raise InvalidSubmit("job.invalid", "run_at", f"must be within {MAX_AHEAD.days} days from now")


def _check_key(param: str, key: str) -> None:
    if not 1 <= len(key) <= MAX_KEY or "\0" in key:
        raise InvalidSubmit("job.invalid", param, f"must have 1 to {MAX_KEY} characters, none of them NUL")


def _check_unique(job: NewJob, unique: Unique) -> None:
    _check_key("unique_key", unique.key)
    if not unique.statuses:
        raise InvalidSubmit("job.invalid", "unique_states", "must name a status at least")
    if unique.period is not None and not 0 < unique.period <= MAX_AHEAD.total_seconds():
        raise InvalidSubmit("job.invalid", "unique_period", f"must be above 0 and at most {MAX_AHEAD.days} days")
    if unique.on_conflict == "return" and job.batch_id is not None:
        raise InvalidSubmit(
            "job.invalid", "unique_key", "a batch counts its own jobs, so an earlier job cannot stand for one of them"
        )


def _check_parents(job: NewJob) -> None:
    parents = [edge.parent_id for edge in job.parents]
    if job.id in parents:
        raise InvalidSubmit("job.dependency_cycle", "depends_on", "a job cannot wait for itself")
    if len(set(parents)) < len(parents):
        raise InvalidSubmit("job.invalid", "depends_on", "names the same job twice")


def _refuse_cycles(jobs: Sequence[NewJob]) -> None:
    """Edges to earlier jobs of the submit, or to older ones, cannot close a circle; others might."""
    before: set[UUID] = set()
    inside = {job.id for job in jobs}
    if len(inside) < len(jobs):
        raise InvalidSubmit("job.invalid", "id", "two jobs have the same id")
    forward = False
    for job in jobs:
        before.add(job.id)
        forward = forward or any(e.parent_id in inside and e.parent_id not in before for e in job.parents)
    if not forward:
        return
    graph = {job.id: [e.parent_id for e in job.parents if e.parent_id in inside] for job in jobs}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        raise InvalidSubmit("job.dependency_cycle", "depends_on", "the jobs wait for each other in a circle") from None


def _pending(job: NewJob, inside: set[UUID], outside: Mapping[UUID, Mapping[str, Any]]) -> int:
    """How many parents ``job`` has to wait for. Raises InvalidSubmit for those it cannot wait for."""
    pending = 0
    for edge in job.parents:
        if edge.parent_id in inside:
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
    here: dict[tuple[UUID, str], NewJob] = {}
    for job, unique in keyed:
        twin = here.setdefault((job.org_id, unique.key), job)
        found: Rows = []
        if twin is job:
            found = yield (
                _sql.UNIQUE,
                {
                    "org_id": job.org_id,
                    "key": unique.key,
                    "statuses": [status.value for status in unique.statuses],
                    "period": unique.period,
                },
            )
        if twin is job and not found:
            continue
        if unique.on_conflict == "reject":
            raise InvalidSubmit(
                "job.duplicate",
                "unique_key",
                "there is a job with this key already",
                existing=found[0]["id"] if found else twin.id,
            )
        standing[job.id] = found[0] if found else {"id": twin.id}
    return standing


def _plan(jobs: Sequence[NewJob], registry: Registry) -> Statements:
    """The statements of a submit, one after another; the caller runs each and sends its rows back."""
    valid = [validate(job, registry) for job in jobs]
    if len(valid) > 1:
        _refuse_cycles(valid)
    standing = yield from _unique(valid)
    new = [job for job in valid if job.id not in standing]
    if standing:
        new = [replace(job, parents=_moved_edges(job.parents, standing)) for job in new]
    inside = {job.id for job in new}
    parents = {edge.parent_id for job in new for edge in job.parents}
    outside: dict[UUID, dict[str, Any]] = {}
    if wanted := sorted(parents - inside):
        rows = yield _sql.ADOPT, {"ids": wanted, "org_ids": list({job.org_id for job in new})}
        outside = {row["id"]: row for row in rows}
    values = []
    for job in new:
        pending = _pending(job, inside, outside) if job.parents else 0
        if job.after_batch is not None:
            pending += yield from _await_batch(job, job.after_batch)
        values.append(_row(job, registry, pending, job.id in parents))
    edges = [(job.id, e) for job in new for e in job.parents]
    if len(values) == 1 and not edges:
        stored = yield _sql.submit_one(values[0], _DEFAULTS), values[0]
    elif values:
        columns: dict[str, Any] = {name: [row[name] for row in values] for name in _sql.COLUMNS}
        columns["child_ids"] = [child for child, _ in edges]
        columns["parent_ids"] = [e.parent_id for _, e in edges]
        columns["on_failure"] = [e.on_failure for _, e in edges]
        stored = yield _sql.SUBMIT, columns
    else:
        stored = []
    return _accepted(valid, stored, standing)


def _moved_edges(edges: tuple[ParentEdge, ...], standing: Mapping[UUID, dict[str, Any]]) -> tuple[ParentEdge, ...]:
    return tuple(
        replace(edge, parent_id=standing[edge.parent_id]["id"]) if edge.parent_id in standing else edge
        for edge in edges
    )


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
    for id, row in standing.items():
        by_id[id] = row if "status" in row else by_id[row["id"]]
    return Accepted([by_id[job.id] for job in jobs], wakes, frozenset(row["id"] for row in standing.values()))


def submit(
    conn: psycopg.Connection[dict[str, Any]], jobs: Sequence[NewJob], registry: Registry = JOB_TYPES
) -> Accepted:
    """Accept jobs on ``conn``, all or none; in a transaction of its own where it takes more than one statement.

    Raises InvalidSubmit before anything is written.
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


def _batch(batch: NewBatch) -> dict[str, Any]:
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
    row = conn.execute(_INSERT_BATCH, _batch(batch)).fetchone()
    assert row is not None
    return row


async def insert_batch_async(conn: psycopg.AsyncConnection[dict[str, Any]], batch: NewBatch) -> dict[str, Any]:
    row = await (await conn.execute(_INSERT_BATCH, _batch(batch))).fetchone()
    assert row is not None
    return row
