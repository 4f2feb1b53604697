"""What a notification is about, read at delivery from the rows of the job or batch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row

from shared.contracts import EventType

__all__ = ["BatchSubject", "JobSubject", "Subject", "load_file_name", "load_secret_version", "load_subject"]

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class JobSubject:
    """A finished job. ``error`` is ``{"code", "message"}`` or None."""

    id: UUID
    type: str
    queue: str
    status: str
    result: dict[str, Any] | None
    error: Any
    batch_id: UUID | None
    metadata: dict[str, Any] | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class BatchSubject:
    """A finished batch, with its jobs counted by outcome."""

    id: UUID
    total: int
    completed: int
    failed: int
    cancelled: int
    created_at: datetime
    finished_at: datetime | None


Subject = JobSubject | BatchSubject

_JOB = """
SELECT id, type, queue, status, result, error, batch_id, metadata, attempt, created_at, started_at, finished_at
FROM jobs WHERE id = %s AND org_id = %s
"""
_BATCH = """
SELECT id, total, completed, failed, cancelled, created_at, finished_at
FROM batches WHERE id = %s AND org_id = %s
"""
# The document of a reading, or of the submission that a grading is about; typed-in answers have none.
_FILE_NAME = """
SELECT d.name
FROM jobs j
LEFT JOIN submissions s ON s.id = (j.payload ->> 'submission_id')::uuid AND s.org_id = j.org_id
JOIN documents d
  ON d.id = coalesce((j.payload ->> 'document_id')::uuid, s.document_id) AND d.org_id = j.org_id
WHERE j.id = %s AND j.org_id = %s
"""

_WEBHOOK_VERSION = "SELECT webhook_secret_version FROM organisations WHERE id = %s"


def load_subject(conn: Connection, org_id: UUID, event: EventType, subject_id: UUID) -> Subject | None:
    """The batch for ``batch.completed``, else the job. None when it is gone, or another organisation's."""
    if event == "batch.completed":
        with conn.cursor(row_factory=class_row(BatchSubject)) as batches:
            return batches.execute(_BATCH, (subject_id, org_id)).fetchone()
    with conn.cursor(row_factory=class_row(JobSubject)) as jobs:
        return jobs.execute(_JOB, (subject_id, org_id)).fetchone()


def load_file_name(conn: Connection, org_id: UUID, job_id: UUID) -> str | None:
    """The name under which the job's document was uploaded; None when the job is about no document."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(_FILE_NAME, (job_id, org_id)).fetchone()


def load_secret_version(conn: Connection, org_id: UUID) -> int:
    """Which version of its webhook secret the organisation is on, from 1."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        found: int | None = cursor.execute(_WEBHOOK_VERSION, (org_id,)).fetchone()
    return found or 1
