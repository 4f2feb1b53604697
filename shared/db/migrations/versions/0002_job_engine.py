"""The job engine: concurrency and unique keys, holds, limits, crashes counted, completion jobs, retention.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NIL = sa.text("'00000000-0000-0000-0000-000000000000'::uuid")

_INDEXES = {
    "jobs_claim_idx": "(queue, org_id, priority, run_at, id) where status = 'queued' and hold = 0",
    "jobs_keyed_idx": (
        "(queue, org_id, concurrency_key, priority, run_at) "
        "where status = 'queued' and hold = 0 and concurrency_key is not null"
    ),
    "jobs_held_idx": ("(queue, hold, org_id, concurrency_key, priority, run_at) where status = 'queued' and hold > 0"),
    "jobs_key_running_idx": (
        "(queue, org_id, concurrency_key) where status = 'processing' and concurrency_key is not null"
    ),
    "jobs_unique_idx": "(org_id, unique_key) where unique_key is not null",
    "jobs_org_idx": "(org_id, status, id)",
    "jobs_member_idx": "(created_by, status, id) where created_by is not null",
    "jobs_finished_idx": "(queue, finished_at) where finished_at is not null",
}
_REPLACED = ("jobs_claim_idx", "jobs_org_idx")


def upgrade() -> None:
    op.execute(
        """
        alter table jobs
          add column crash_count integer not null default 0,
          add column concurrency_key text,
          add column concurrency_limit integer not null default 1,
          add column unique_key text,
          add column hold smallint not null default 0
        """
    )
    for name in _REPLACED:
        op.drop_index(name, table_name="jobs")
    for name, definition in _INDEXES.items():
        op.execute(f"create index {name} on jobs {definition}")
    op.execute(
        """
        alter table workers
          add column lease_seconds double precision not null default 15,
          add column job_types text[] not null default '{}'
        """
    )
    op.create_index("workers_queue_idx", "workers", ["queue", "seen_at"])
    op.execute(
        """
        alter table batches
          add column completion_job_id uuid,
          add column cancelled_at timestamptz,
          add column cancelled_by uuid
        """
    )
    op.execute(
        """
        alter table organisations
          add column job_retention_hours integer,
          add column job_retention_count integer,
          add column file_retention_hours integer
        """
    )
    op.add_column("documents", sa.Column("files_deleted_at", sa.DateTime(timezone=True)))
    op.create_table(
        "queue_limits",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("org_id", postgresql.UUID(), server_default=_NIL, nullable=False),
        sa.Column("concurrency_key", sa.Text(), server_default="", nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("paused_by", sa.Text()),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("max_running", sa.Integer()),
        sa.Column("start_limit", sa.Integer()),
        sa.Column("start_period", sa.Float()),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("scope in ('queue', 'organisation', 'key')", name=op.f("queue_limits_scope_check")),
        sa.CheckConstraint(
            "max_running >= 0 and start_limit > 0 and start_period > 0", name=op.f("queue_limits_positive_check")
        ),
        sa.PrimaryKeyConstraint("queue", "scope", "org_id", "concurrency_key", name=op.f("queue_limits_pkey")),
    )
    op.create_table(
        "start_buckets",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("org_id", postgresql.UUID(), server_default=_NIL, nullable=False),
        sa.Column("concurrency_key", sa.Text(), server_default="", nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("filled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("queue", "scope", "org_id", "concurrency_key", name=op.f("start_buckets_pkey")),
    )


def downgrade() -> None:
    op.drop_table("start_buckets")
    op.drop_table("queue_limits")
    op.drop_column("documents", "files_deleted_at")
    op.execute(
        """
        alter table organisations
          drop column job_retention_hours, drop column job_retention_count, drop column file_retention_hours
        """
    )
    op.execute("alter table batches drop column completion_job_id, drop column cancelled_at, drop column cancelled_by")
    op.drop_index("workers_queue_idx", table_name="workers")
    op.execute("alter table workers drop column lease_seconds, drop column job_types")
    for name in _INDEXES:
        op.drop_index(name, table_name="jobs")
    op.execute(
        """
        alter table jobs drop column crash_count, drop column concurrency_key, drop column concurrency_limit,
          drop column unique_key, drop column hold
        """
    )
    op.execute("create index jobs_claim_idx on jobs (queue, org_id, priority, run_at, id) where status = 'queued'")
    op.execute("create index jobs_org_idx on jobs (org_id, id)")
