"""Every statement that reads jobs, and how a viewer's rights become a condition. Executed sync or async."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from .states import Priority, Status

__all__ = [
    "BATCH_COUNTS",
    "EVENTS",
    "QUEUE_FIGURES",
    "JobFilter",
    "Query",
    "Viewer",
    "get_batch",
    "get_job",
    "list_jobs",
]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks: members see their own, admins their organisation, super admins everything."""

    org_id: UUID
    member_id: UUID
    role: str

    def condition(self, alias: str = "") -> str:
        """A SQL condition over ``org_id`` and ``created_by`` of a table; its parameters come from ``parameters``."""
        a = f"{alias}." if alias else ""
        if self.role == "super_admin":
            return "true"
        if self.role == "admin":
            return f"{a}org_id = %(viewer_org)s"
        return f"{a}org_id = %(viewer_org)s and {a}created_by = %(viewer_member)s"

    def organisation(self, alias: str = "") -> str:
        """As ``condition``, for what a whole organisation shares (standards)."""
        a = f"{alias}." if alias else ""
        return "true" if self.role == "super_admin" else f"{a}org_id = %(viewer_org)s"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"viewer_org": self.org_id, "viewer_member": self.member_id}


@dataclass(frozen=True, slots=True)
class Query:
    """A statement with its parameters, for either kind of connection."""

    sql: str
    parameters: dict[str, Any]


_JOB = """id, org_id, created_by, type, queue, status, priority, attempt, max_retries, retry_count, stall_count,
  progress, step, event_seq, time_limit, created_at, run_at, started_at, finished_at, next_retry_at, cancelled_at,
  cancelled_by, batch_id, payload, metadata, error,
  array(select d.parent_id from job_dependencies d where d.child_id = jobs.id) as depends_on"""


def get_job(viewer: Viewer, job_id: UUID, *, with_result: bool = False) -> Query:
    """One job, or no row: another tenant's job does not exist."""
    result = ", result" if with_result else ""
    return Query(
        f"select {_JOB}{result} from jobs where id = %(id)s and {viewer.condition()}",
        {"id": job_id, **viewer.parameters},
    )


@dataclass(frozen=True, slots=True)
class JobFilter:
    statuses: Sequence[Status] = ()
    types: Sequence[str] = ()
    batch_id: UUID | None = None
    priority: Priority | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def list_jobs(viewer: Viewer, wanted: JobFilter, *, before: UUID | None, limit: int) -> Query:
    """Newest first. ``before`` is the last id of the page before: ids are ordered by time of creation."""
    where = [viewer.condition()]
    parameters: dict[str, Any] = {"limit": limit, **viewer.parameters}
    for column, operator, value in (
        ("id", "<", before),
        ("batch_id", "=", wanted.batch_id),
        ("priority", "=", None if wanted.priority is None else int(wanted.priority)),
        ("created_at", ">=", wanted.created_after),
        ("created_at", "<", wanted.created_before),
    ):
        if value is not None:
            name = f"p{len(parameters)}"
            where.append(f"{column} {operator} %({name})s")
            parameters[name] = value
    if wanted.types:
        where.append("type = any(%(types)s)")
        parameters["types"] = list(wanted.types)
    if wanted.statuses:
        where.append("status = any(%(statuses)s)")
        parameters["statuses"] = [s.value for s in wanted.statuses]
    return Query(
        f"select {_JOB} from jobs where {' and '.join(where)} order by id desc limit %(limit)s",
        parameters,
    )


EVENTS = """
select seq, at, kind, attempt, data from job_events
 where job_id = %(job_id)s and seq > %(after)s order by seq limit %(limit)s
"""


def get_batch(viewer: Viewer, batch_id: UUID) -> Query:
    return Query(
        f"select * from batches where id = %(id)s and {viewer.condition()}", {"id": batch_id, **viewer.parameters}
    )


# By status and type, with the mean progress of what has not ended.
BATCH_COUNTS = """
select type, status, count(*)::int as jobs, coalesce(sum(progress), 0)::int as progress
  from jobs where batch_id = %(batch_id)s group by type, status
"""

QUEUE_FIGURES = f"""
select queue,
       count(*) filter (where status = '{Status.QUEUED.value}' and run_at <= now()) as due,
       count(*) filter (where status = '{Status.QUEUED.value}' and run_at > now()) as later,
       count(*) filter (where status = '{Status.PROCESSING.value}') as processing,
       extract(epoch from now() - min(run_at) filter (where status = '{Status.QUEUED.value}' and run_at <= now()))
         as oldest_seconds
  from jobs where status in ('{Status.QUEUED.value}', '{Status.PROCESSING.value}') group by queue
"""
