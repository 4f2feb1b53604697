"""What the store takes and gives: new jobs, claimed jobs, outcomes and wake-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from .states import ACTIVE, EventKind, Priority, Status, allowed

__all__ = [
    "ClaimedJob",
    "LostLease",
    "Moved",
    "NewBatch",
    "NewJob",
    "OnFailure",
    "Outcome",
    "ParentEdge",
    "Unique",
    "Wake",
]

# What becomes of a waiting child whose parent fails: it fails too, is cancelled, or runs all the same.
# A cancelled parent cancels the child, except for ``run``.
OnFailure = Literal["fail", "cancel", "run"]


@dataclass(frozen=True, slots=True)
class ParentEdge:
    """Wait for ``parent_id``: a job of the same submit, or one of the same organisation accepted before."""

    parent_id: UUID
    on_failure: OnFailure = "fail"


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one job of an organisation with this ``key`` in any of ``statuses``, accepted in the last ``period``
    seconds (None: ever). A second one is refused (``reject``), or stands for the first (``return``)."""

    key: str
    statuses: frozenset[Status] = ACTIVE
    period: float | None = None
    on_conflict: Literal["reject", "return"] = "reject"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to accept. ``payload`` is validated against its type's model at submit."""

    id: UUID
    type: str
    payload: Mapping[str, Any]
    org_id: UUID
    created_by: UUID | None = None
    priority: Priority = Priority.NORMAL
    run_at: datetime | None = None
    max_retries: int | None = None  # None: the type's policy
    time_limit: float | None = None  # seconds; None: the type's policy
    batch_id: UUID | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    notify_email: str | None = None
    parents: tuple[ParentEdge, ...] = ()
    # Of an organisation's jobs in a queue with the same key, at most concurrency_limit run at once.
    concurrency_key: str | None = None
    concurrency_limit: int = 1
    unique: Unique | None = None
    # The completion job of this batch: waits until all of the batch's jobs have ended, however they did.
    after_batch: UUID | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch row; ``total`` is the number of its jobs."""

    id: UUID
    org_id: UUID
    created_by: UUID | None
    kind: str
    total: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this process holds the lease of. ``attempt`` is the fencing token of every later write."""

    id: UUID
    org_id: UUID
    created_by: UUID | None
    type: str
    queue: str
    priority: int
    attempt: int
    max_retries: int
    retry_count: int
    stall_count: int
    crash_count: int
    time_limit: float
    batch_id: UUID | None
    payload: Any
    created_at: datetime
    run_at: datetime
    started_at: datetime
    event_seq: int
    concurrency_key: str | None
    has_followers: bool  # more than the job itself changes when it ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. Built by the class methods, so that status and event always agree."""

    id: UUID
    attempt: int
    status: Status
    kind: EventKind
    result: Any = None
    error: Mapping[str, Any] | None = None
    delay: float | None = None  # seconds until it may run again
    charge: int = 0  # retries used up by this

    @classmethod
    def _of(cls, kind: EventKind, job: ClaimedJob, **kw: Any) -> Outcome:
        return cls(job.id, job.attempt, allowed(kind).target, kind, **kw)

    @classmethod
    def completed(cls, job: ClaimedJob, result: Any) -> Outcome:
        return cls._of(EventKind.COMPLETED, job, result=result)

    @classmethod
    def failed(cls, job: ClaimedJob, error: Mapping[str, Any]) -> Outcome:
        return cls._of(EventKind.FAILED, job, error=error)

    @classmethod
    def retry(cls, job: ClaimedJob, error: Mapping[str, Any], delay: float) -> Outcome:
        return cls._of(EventKind.RETRYING, job, error=error, delay=delay, charge=1)

    @classmethod
    def snoozed(cls, job: ClaimedJob, why: str, delay: float) -> Outcome:
        return cls._of(EventKind.SNOOZED, job, error={"code": "job.snoozed", "message": why}, delay=delay)

    @classmethod
    def released(cls, job: ClaimedJob) -> Outcome:
        """Given back by a stopping worker: runs again at once, charged to nobody, and keeps its place (``run_at``)."""
        return cls._of(EventKind.RELEASED, job)


@dataclass(frozen=True, slots=True)
class LostLease:
    """A held job that a heartbeat did not renew. ``status`` is None when the row is gone or another attempt's, and
    PROCESSING when the lease is still ours but the row was locked just then."""

    id: UUID
    attempt: int
    status: Status | None


@dataclass(frozen=True, slots=True)
class Wake:
    """A job that is due in a queue: worth a message."""

    queue: str
    job_id: UUID
    priority: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What a write changed: jobs whose status changed (``jobs``), and what to wake now that it is committed."""

    jobs: tuple[tuple[UUID, Status], ...] = ()
    wakes: tuple[Wake, ...] = ()

    @property
    def ids(self) -> tuple[UUID, ...]:
        return tuple(id for id, _ in self.jobs)

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.jobs + other.jobs, self.wakes + other.wakes)
