"""Figures of queues and organisations as last counted; type and priority in the indexes of lists.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_LISTS = {
    "jobs_org_idx": ("(org_id, status, id)", ""),
    "jobs_member_idx": ("(created_by, status, id)", "where created_by is not null"),
}
_NUMBERS = ("waiting", "due", "later", "held", "processing", "failed")
_SECONDS = ("wait_p50", "wait_p95", "run_p50", "run_p95")


def _lists(include: str) -> None:
    for name, (columns, where) in _LISTS.items():
        op.drop_index(name, table_name="jobs")
        op.execute(f"create index {name} on jobs {columns} {include} {where}")


def upgrade() -> None:
    _lists("include (type, priority)")
    op.execute("create index batches_completion_idx on batches (completion_job_id) where completion_job_id is not null")
    op.execute("create index documents_files_idx on documents (id) where files_deleted_at is null")
    op.create_index("idempotency_keys_created_idx", "idempotency_keys", ["created_at"])
    op.create_table(
        "queue_figures",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in _NUMBERS),
        sa.Column("oldest_run_at", sa.DateTime(timezone=True)),
        sa.Column("per_minute", sa.Float(), nullable=False),
        *(sa.Column(name, sa.Float()) for name in _SECONDS),
        sa.PrimaryKeyConstraint("queue", name=op.f("queue_figures_pkey")),
    )
    op.create_table(
        "job_figures",
        sa.Column("org_id", sa.UUID(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("org_id", "type", "status", name=op.f("job_figures_pkey")),
    )


def downgrade() -> None:
    op.drop_table("job_figures")
    op.drop_table("queue_figures")
    op.drop_index("idempotency_keys_created_idx", table_name="idempotency_keys")
    op.drop_index("documents_files_idx", table_name="documents")
    op.drop_index("batches_completion_idx", table_name="batches")
    _lists("")
