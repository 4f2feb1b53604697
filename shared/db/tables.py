"""The schema as SQLAlchemy metadata: what migrations are generated from and checked against.

Queries are named SQL on psycopg (`docs/decisions/0002-sql.md`); these tables are never mapped to objects.
Hot tables (``jobs``, ``job_events``) carry no foreign keys: each costs a lookup and a row lock an insert,
and their writers are three statements in ``shared/jobs``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, UUID

__all__ = ["metadata"]

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

_now = sa.text("now()")


def _uuid(name: str, *args: Any, **kw: Any) -> sa.Column[Any]:
    return sa.Column(name, UUID(as_uuid=True), *args, **kw)


def _id() -> sa.Column[Any]:
    return _uuid("id", primary_key=True)


def _time(name: str, **kw: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), **kw)


def _created() -> sa.Column[Any]:
    return _time("created_at", nullable=False, server_default=_now)


def _text(name: str, **kw: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, **kw)


def _json(name: str, **kw: Any) -> sa.Column[Any]:
    return sa.Column(name, JSONB, **kw)


def _int(name: str, **kw: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, **kw)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())


def _org() -> sa.Column[Any]:
    return _uuid("org_id", sa.ForeignKey("organisations.id", ondelete="CASCADE"), nullable=False)


_ZERO = sa.text("0")
_EMPTY = sa.text("'{}'::jsonb")

# --- who ---------------------------------------------------------------------------------------

sa.Table(
    "organisations",
    metadata,
    _id(),
    _text("name", nullable=False),
    _int("webhook_secret_version", nullable=False, server_default=sa.text("1")),
    # How long ended jobs and files are kept, in hours, and how many ended jobs: null is the deployment's setting.
    _int("job_retention_hours"),
    _int("job_retention_count"),
    _int("file_retention_hours"),
    _created(),
)

sa.Table(
    "members",
    metadata,
    _id(),
    _org(),
    _text("email", nullable=False),
    _text("name", nullable=False),
    _text("role", nullable=False),
    _created(),
    sa.CheckConstraint("role in ('member', 'admin', 'super_admin')", name="role"),
    sa.UniqueConstraint("org_id", "email"),
)

sa.Table(
    "api_keys",
    metadata,
    _id(),
    _org(),
    _uuid("member_id", sa.ForeignKey("members.id", ondelete="CASCADE"), nullable=False),
    _text("name", nullable=False),
    # SHA-256 of the whole key: it carries 160 random bits, so no slow hash is needed.
    sa.Column("hash", BYTEA, nullable=False),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False),
    _created(),
    _time("expires_at"),
    _time("revoked_at"),
    _time("last_used_at"),
)

# --- the job engine ----------------------------------------------------------------------------

jobs = sa.Table(
    "jobs",
    metadata,
    _id(),
    _uuid("org_id", nullable=False),
    _uuid("created_by"),
    _text("type", nullable=False),
    _text("queue", nullable=False),
    _text("status", nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),  # 0 high, 1 normal, 2 low
    _int("attempt", nullable=False, server_default=_ZERO),  # the fencing token: one more at every claim
    _int("max_retries", nullable=False),
    _int("retry_count", nullable=False, server_default=_ZERO),
    _int("stall_count", nullable=False, server_default=_ZERO),  # leases that ran out though the worker was alive
    _int("crash_count", nullable=False, server_default=_ZERO),  # processes that died while they held it
    _int("pending_parents", nullable=False, server_default=_ZERO),
    _flag("has_children"),
    _int("progress", nullable=False, server_default=_ZERO),
    _int("event_seq", nullable=False, server_default=sa.text("1")),
    sa.Column("time_limit", sa.Float, nullable=False),  # seconds
    _created(),
    _time("run_at", nullable=False, server_default=_now),
    _time("started_at"),
    _time("finished_at"),
    _time("next_retry_at"),
    _time("cancelled_at"),
    _uuid("cancelled_by"),
    _time("lease_until"),
    _uuid("worker_id"),
    _uuid("batch_id"),
    _text("concurrency_key"),
    _int("concurrency_limit", nullable=False, server_default=sa.text("1")),
    _text("unique_key"),
    # Why a queued job is not among those that a claim looks at (states.Hold): 0 nothing, 1 its concurrency key is
    # taken, 2 it runs alone.
    sa.Column("hold", sa.SmallInteger, nullable=False, server_default=_ZERO),
    _text("step"),
    _json("payload", nullable=False),
    _json("metadata", nullable=False, server_default=_EMPTY),
    _json("result"),
    _json("error"),
    _text("webhook_url"),
    _text("notify_email"),
    sa.CheckConstraint(
        "status in ('waiting', 'queued', 'processing', 'completed', 'failed', 'cancelled')", name="status"
    ),
    # Heartbeats and progress must be heap-only updates: none of their columns is in any index,
    # and a page keeps room for them.
    postgresql_with={"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02"},
)
sa.Index(
    "jobs_claim_idx",
    jobs.c.queue,
    jobs.c.org_id,
    jobs.c.priority,
    jobs.c.run_at,
    jobs.c.id,
    postgresql_where=sa.text("status = 'queued' and hold = 0"),
)
sa.Index("jobs_running_idx", jobs.c.queue, jobs.c.org_id, postgresql_where=sa.text("status = 'processing'"))
# Of jobs with a concurrency key only: those that a claim may take, those held back, and those that run.
sa.Index(
    "jobs_keyed_idx",
    jobs.c.queue,
    jobs.c.org_id,
    jobs.c.concurrency_key,
    jobs.c.priority,
    jobs.c.run_at,
    postgresql_where=sa.text("status = 'queued' and hold = 0 and concurrency_key is not null"),
)
sa.Index(
    "jobs_held_idx",
    jobs.c.queue,
    jobs.c.hold,
    jobs.c.org_id,
    jobs.c.concurrency_key,
    jobs.c.priority,
    jobs.c.run_at,
    postgresql_where=sa.text("status = 'queued' and hold > 0"),
)
sa.Index(
    "jobs_key_running_idx",
    jobs.c.queue,
    jobs.c.org_id,
    jobs.c.concurrency_key,
    postgresql_where=sa.text("status = 'processing' and concurrency_key is not null"),
)
sa.Index("jobs_unique_idx", jobs.c.org_id, jobs.c.unique_key, postgresql_where=sa.text("unique_key is not null"))
# Lists: an organisation's, and a member's own. A list of all statuses merges six of these ranges.
# They hold type and priority too, so that a filter by these, and counts by type, need not visit the rows.
sa.Index("jobs_org_idx", jobs.c.org_id, jobs.c.status, jobs.c.id, postgresql_include=["type", "priority"])
sa.Index(
    "jobs_member_idx",
    jobs.c.created_by,
    jobs.c.status,
    jobs.c.id,
    postgresql_include=["type", "priority"],
    postgresql_where=sa.text("created_by is not null"),
)
sa.Index("jobs_batch_idx", jobs.c.batch_id, jobs.c.id, postgresql_where=sa.text("batch_id is not null"))
# Throughput and latency of the last minutes; retention by age.
sa.Index("jobs_finished_idx", jobs.c.queue, jobs.c.finished_at, postgresql_where=sa.text("finished_at is not null"))

# What is allowed at once and at what pace. ``scope`` says of what: a queue as a whole; an organisation in it
# (``org_id`` nil: each organisation for itself); a concurrency key of an organisation's jobs in it.
_NIL = sa.text("'00000000-0000-0000-0000-000000000000'::uuid")
sa.Table(
    "queue_limits",
    metadata,
    _text("queue", nullable=False),
    _text("scope", nullable=False),
    _uuid("org_id", nullable=False, server_default=_NIL),
    _text("concurrency_key", nullable=False, server_default=""),
    _time("paused_at"),
    _text("paused_by"),  # an actor: member:…
    _text("pause_reason"),
    _int("max_running"),
    _int("start_limit"),  # starts in start_period seconds, and the burst
    sa.Column("start_period", sa.Float),
    _time("updated_at", nullable=False, server_default=_now),
    sa.PrimaryKeyConstraint("queue", "scope", "org_id", "concurrency_key"),
    sa.CheckConstraint("scope in ('queue', 'organisation', 'key')", name="scope"),
    sa.CheckConstraint("max_running >= 0 and start_limit > 0 and start_period > 0", name="positive"),
)

# The token buckets of start limits, one a queue, organisation or key that has started something.
sa.Table(
    "start_buckets",
    metadata,
    _text("queue", nullable=False),
    _text("scope", nullable=False),
    _uuid("org_id", nullable=False, server_default=_NIL),
    _text("concurrency_key", nullable=False, server_default=""),
    sa.Column("tokens", sa.Float, nullable=False),
    _time("filled_at", nullable=False, server_default=_now),
    sa.PrimaryKeyConstraint("queue", "scope", "org_id", "concurrency_key"),
)

sa.Table(
    "job_events",
    metadata,
    _uuid("job_id", nullable=False),
    _int("seq", nullable=False),  # 1, 2, 3 … without a gap in each job
    _uuid("org_id", nullable=False),
    _time("at", nullable=False, server_default=_now),
    _text("kind", nullable=False),
    _int("attempt", nullable=False, server_default=_ZERO),
    _text("actor", nullable=False),  # member:…, worker:…, scheduler, parent:…
    _json("data", nullable=False, server_default=_EMPTY),
    sa.PrimaryKeyConstraint("job_id", "seq"),
)

dependencies = sa.Table(
    "job_dependencies",
    metadata,
    _uuid("child_id", nullable=False),
    _uuid("parent_id", nullable=False),
    # What becomes of the child when the parent does not complete.
    _text("on_failure", nullable=False, server_default="fail"),
    sa.PrimaryKeyConstraint("child_id", "parent_id"),
    sa.CheckConstraint("on_failure in ('fail', 'cancel', 'run')", name="on_failure"),
)
sa.Index("job_dependencies_parent_id_idx", dependencies.c.parent_id)

batches = sa.Table(
    "batches",
    metadata,
    _id(),
    _uuid("org_id", nullable=False),
    _uuid("created_by"),
    _text("kind", nullable=False),
    _int("total", nullable=False),
    _int("completed", nullable=False, server_default=_ZERO),
    _int("failed", nullable=False, server_default=_ZERO),
    _int("cancelled", nullable=False, server_default=_ZERO),
    _json("metadata", nullable=False, server_default=_EMPTY),
    _text("webhook_url"),
    _uuid("completion_job_id"),  # waits for the batch to finish, then runs
    _created(),
    _time("finished_at"),
    _time("cancelled_at"),
    _uuid("cancelled_by"),
)
sa.Index("batches_org_idx", batches.c.org_id, batches.c.id)
sa.Index(
    "batches_completion_idx",
    batches.c.completion_job_id,
    postgresql_where=sa.text("completion_job_id is not null"),
)

workers = sa.Table(
    "workers",
    metadata,
    _id(),
    _text("queue", nullable=False),
    _text("host", nullable=False),
    _int("pid", nullable=False),
    _int("concurrency", nullable=False),
    sa.Column("lease_seconds", sa.Float, nullable=False, server_default=sa.text("15")),
    sa.Column("job_types", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
    _time("started_at", nullable=False, server_default=_now),
    _time("seen_at", nullable=False, server_default=_now),
)
sa.Index("workers_queue_idx", workers.c.queue, workers.c.seen_at)

# What the scheduler counted last, exactly, and how long that took (docs/decisions/0008-figures.md).
sa.Table(
    "queue_figures",
    metadata,
    _text("queue", primary_key=True),
    _time("as_of", nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),  # what the whole sample cost
    _int("waiting", nullable=False),
    _int("due", nullable=False),
    _int("later", nullable=False),
    _int("held", nullable=False),
    _int("processing", nullable=False),
    _int("failed", nullable=False),
    _time("oldest_run_at"),  # of those due
    sa.Column("per_minute", sa.Float, nullable=False),  # ended, over the last minutes
    sa.Column("wait_p50", sa.Float),  # seconds, due to claimed
    sa.Column("wait_p95", sa.Float),
    sa.Column("run_p50", sa.Float),  # seconds, claimed to ended
    sa.Column("run_p95", sa.Float),
)
sa.Table(
    "job_figures",
    metadata,
    _uuid("org_id", nullable=False),
    _text("type", nullable=False),
    _text("status", nullable=False),
    _int("jobs", nullable=False),
    sa.PrimaryKeyConstraint("org_id", "type", "status"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    _uuid("org_id", nullable=False),
    _uuid("member_id", nullable=False),
    _text("key", nullable=False),
    sa.Column("request_hash", BYTEA, nullable=False),
    _uuid("resource_id", nullable=False),
    _created(),
    sa.PrimaryKeyConstraint("org_id", "member_id", "key"),
)
sa.Index("idempotency_keys_created_idx", idempotency_keys.c.created_at)  # retention

# --- student work ------------------------------------------------------------------------------

documents = sa.Table(
    "documents",
    metadata,
    _id(),
    _org(),
    _uuid("created_by"),
    _text("name", nullable=False),  # as the client named it, for display only
    _text("media_type", nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", BYTEA, nullable=False),
    _text("storage_key", nullable=False),
    _int("page_count"),
    _created(),
    _time("read_at"),
    _time("files_deleted_at"),  # by retention: the text stays
)
sa.Index("documents_org_idx", documents.c.org_id, documents.c.id)
sa.Index("documents_files_idx", documents.c.id, postgresql_where=sa.text("files_deleted_at is null"))  # retention

sa.Table(
    "document_pages",
    metadata,
    _uuid("document_id", sa.ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    _int("number", nullable=False),
    _org(),
    _int("width", nullable=False),
    _int("height", nullable=False),
    _int("rotation", nullable=False, server_default=_ZERO),
    _text("source", nullable=False),
    sa.Column("confidence", sa.Float, nullable=False),
    _text("image_key"),
    _json("lines", nullable=False),
    sa.PrimaryKeyConstraint("document_id", "number"),
)

submissions = sa.Table(
    "submissions",
    metadata,
    _id(),
    _org(),
    _uuid("created_by"),
    _uuid("document_id", sa.ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    _uuid("job_id", nullable=False),
    _text("status", nullable=False, server_default="reading"),
    _text("student_name"),
    _text("student_id"),
    _text("school"),
    _text("grade_level"),
    _json("fields", nullable=False, server_default=_EMPTY),
    _flag("needs_review"),
    _created(),
    _time("updated_at", nullable=False, server_default=_now),
    sa.CheckConstraint("status in ('reading', 'read')", name="status"),
)
sa.Index("submissions_org_idx", submissions.c.org_id, submissions.c.id)
sa.Index("submissions_document_id_idx", submissions.c.document_id)

# --- standards and gradings --------------------------------------------------------------------

standards = sa.Table(
    "standards",
    metadata,
    _id(),
    _org(),
    _uuid("created_by"),
    _text("name", nullable=False),
    _int("version", nullable=False, server_default=sa.text("1")),
    _created(),
    _time("updated_at", nullable=False, server_default=_now),
    _time("deleted_at"),
)
sa.Index("standards_org_idx", standards.c.org_id, standards.c.id)

sa.Table(
    "standard_versions",
    metadata,
    _uuid("standard_id", sa.ForeignKey("standards.id", ondelete="CASCADE"), nullable=False),
    _int("version", nullable=False),
    _org(),
    _json("key", nullable=False),
    sa.Column("max_points", sa.Float, nullable=False),
    _uuid("created_by"),
    _created(),
    sa.PrimaryKeyConstraint("standard_id", "version"),
)

gradings = sa.Table(
    "gradings",
    metadata,
    _id(),
    _org(),
    _uuid("created_by"),
    _uuid("submission_id", sa.ForeignKey("submissions.id", ondelete="CASCADE")),
    _uuid("standard_id", nullable=False),
    _int("standard_version", nullable=False),
    _uuid("job_id", nullable=False),
    _text("status", nullable=False, server_default="pending"),
    _text("student_name"),
    _text("student_id"),
    _json("answers"),
    _json("result"),
    sa.Column("points", sa.Float),
    sa.Column("max_points", sa.Float),
    sa.Column("percentage", sa.Float),
    _flag("needs_review"),
    _created(),
    _time("graded_at"),
    sa.CheckConstraint("status in ('pending', 'graded')", name="status"),
    sa.ForeignKeyConstraint(
        ["standard_id", "standard_version"],
        ["standard_versions.standard_id", "standard_versions.version"],
        name="gradings_standard_id_fkey",
    ),
)
sa.Index("gradings_org_idx", gradings.c.org_id, gradings.c.id)
sa.Index("gradings_submission_id_idx", gradings.c.submission_id)
