"""Accepting jobs: validation, then one statement. The same for threads and for the gateway's event loop.

The caller owns the transaction, so that what belongs to the job (a document row, an idempotency key)
commits with it or not at all. Nothing is sent to a broker here: publish ``Accepted.wakes`` after the commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from shared.contracts import JOB_TYPES, Registry, UnknownJobType

from . import _sql
from .errors import InvalidSubmit
from .models import NewBatch, NewJob, Wake
from .states import TERMINAL, Status

__all__ = ["Accepted", "insert_batch", "insert_batch_async", "submit", "submit_async", "validate"]

_INSERT_BATCH = """
insert into batches (id, org_id, created_by, kind, total, metadata, webhook_url)
values (%(id)s, %(org_id)s, %(created_by)s, %(kind)s, %(total)s, %(metadata)s, %(webhook_url)s)
returning *
"""

MAX_TIME_LIMIT = 3600.0
MAX_RETRIES = 25


@dataclass(frozen=True, slots=True)
class Accepted:
    """The rows as stored, in the order given, and what to wake once the transaction has committed."""

    rows: list[dict[str, Any]]
    wakes: list[Wake]


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
    max_retries = job_type.policy.max_retries if job.max_retries is None else job.max_retries
    if not 0 <= max_retries <= MAX_RETRIES:
        raise InvalidSubmit("job.invalid", "max_retries", f"must be between 0 and {MAX_RETRIES}")
    time_limit = job_type.policy.time_limit if job.time_limit is None else job.time_limit
    if not 0 < time_limit <= MAX_TIME_LIMIT:
        raise InvalidSubmit("job.invalid", "time_limit", f"must be above 0 and at most {MAX_TIME_LIMIT:.0f} seconds")
    if job.run_at is not None and job.run_at.tzinfo is None:
        raise InvalidSubmit("job.invalid", "run_at", "must carry a time zone, for example 2026-01-31T08:00:00Z")
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
    )


def _outside_parents(jobs: Sequence[NewJob]) -> list[UUID]:
    """Parents that were accepted earlier, not in this submit."""
    inside = {job.id for job in jobs}
    return sorted({e.parent_id for job in jobs for e in job.parents} - inside)


def _adopt(jobs: Sequence[NewJob], parents: list[UUID]) -> dict[str, Any]:
    return {"ids": parents, "org_ids": list({job.org_id for job in jobs})}


def _pending(job: NewJob, before: set[UUID], outside: Mapping[UUID, Mapping[str, Any]]) -> int:
    """How many parents ``job`` has to wait for. Raises InvalidSubmit for those it cannot wait for."""
    pending = 0
    for edge in job.parents:
        if edge.parent_id in before:
            pending += 1
            continue
        parent = outside.get(edge.parent_id)
        # Only jobs of this submit that come earlier, or older ones, can be parents: no cycle can be built.
        if parent is None or parent["org_id"] != job.org_id:
            raise InvalidSubmit("job.unknown_parent", "depends_on", "names a job that does not exist")
        status = Status(parent["status"])
        if status in (Status.FAILED, Status.CANCELLED) and edge.on_failure != "run":
            raise InvalidSubmit("job.parent_ended", "depends_on", f"names a job that has {status.value}")
        pending += status not in TERMINAL
    return pending


def _parameters(
    jobs: Sequence[NewJob], registry: Registry, outside: Mapping[UUID, Mapping[str, Any]]
) -> dict[str, Any]:
    valid = [validate(job, registry) for job in jobs]
    before: set[UUID] = set()
    pending = []
    for job in valid:
        pending.append(_pending(job, before, outside))
        before.add(job.id)
    edges = [(job.id, e) for job in valid for e in job.parents]
    parents = {e.parent_id for _, e in edges}
    return {
        "id": [j.id for j in valid],
        "org_id": [j.org_id for j in valid],
        "created_by": [j.created_by for j in valid],
        "type": [j.type for j in valid],
        "queue": [registry.get(j.type).queue for j in valid],
        "priority": [int(j.priority) for j in valid],
        "max_retries": [j.max_retries for j in valid],
        "time_limit": [j.time_limit for j in valid],
        "run_at": [j.run_at for j in valid],
        "batch_id": [j.batch_id for j in valid],
        "payload": [Jsonb(j.payload) for j in valid],
        "metadata": [Jsonb(dict(j.metadata)) for j in valid],
        "webhook_url": [j.webhook_url for j in valid],
        "notify_email": [j.notify_email for j in valid],
        "pending_parents": pending,
        "has_children": [j.id in parents for j in valid],
        "child_ids": [child for child, _ in edges],
        "parent_ids": [e.parent_id for _, e in edges],
        "on_failure": [e.on_failure for _, e in edges],
    }


def _accepted(jobs: Sequence[NewJob], rows: list[dict[str, Any]]) -> Accepted:
    by_id = {row["id"]: row for row in rows}
    ordered = [by_id[job.id] for job in jobs]
    wakes = [
        Wake(row["queue"], row["id"], row["priority"])
        for row in ordered
        if row["status"] == Status.QUEUED and row["run_at"] <= row["created_at"]
    ]
    return Accepted(ordered, wakes)


def submit(
    conn: psycopg.Connection[dict[str, Any]], jobs: Sequence[NewJob], registry: Registry = JOB_TYPES
) -> Accepted:
    """Accept jobs on ``conn``: inside a transaction, where any waits for a job accepted earlier.

    Raises InvalidSubmit before anything is written.
    """
    outside = {}
    if parents := _outside_parents(jobs):
        outside = {row["id"]: row for row in conn.execute(_sql.ADOPT, _adopt(jobs, parents)).fetchall()}
    return _accepted(jobs, conn.execute(_sql.SUBMIT, _parameters(jobs, registry, outside)).fetchall())


async def submit_async(
    conn: psycopg.AsyncConnection[dict[str, Any]], jobs: Sequence[NewJob], registry: Registry = JOB_TYPES
) -> Accepted:
    """As ``submit``, on an event loop."""
    outside = {}
    if parents := _outside_parents(jobs):
        cursor = await conn.execute(_sql.ADOPT, _adopt(jobs, parents))
        outside = {row["id"]: row for row in await cursor.fetchall()}
    cursor = await conn.execute(_sql.SUBMIT, _parameters(jobs, registry, outside))
    return _accepted(jobs, await cursor.fetchall())


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
