"""Accepting jobs."""

from __future__ import annotations

from ..states import EventKind
from .parts import QUEUED, WAITING

__all__ = ["ADOPT", "SUBMIT"]


# Accept jobs: rows, first events and dependencies in one statement. Arrays run in parallel, one entry a job.
SUBMIT = f"""
with input as (
  select * from unnest(
    %(id)s::uuid[], %(org_id)s::uuid[], %(created_by)s::uuid[], %(type)s::text[], %(queue)s::text[],
    %(priority)s::smallint[], %(max_retries)s::int[], %(time_limit)s::float8[], %(run_at)s::timestamptz[],
    %(batch_id)s::uuid[], %(payload)s::jsonb[], %(metadata)s::jsonb[], %(webhook_url)s::text[],
    %(notify_email)s::text[], %(pending_parents)s::int[], %(has_children)s::boolean[]
  ) as t (id, org_id, created_by, type, queue, priority, max_retries, time_limit, run_at, batch_id, payload,
          metadata, webhook_url, notify_email, pending_parents, has_children)
), job as (
  insert into jobs (id, org_id, created_by, type, queue, status, priority, max_retries, time_limit, run_at, batch_id,
                    payload, metadata, webhook_url, notify_email, pending_parents, has_children)
  select id, org_id, created_by, type, queue,
         case when pending_parents > 0 then {WAITING} else {QUEUED} end,
         priority, max_retries, time_limit, greatest(coalesce(run_at, now()), now()), batch_id, payload, metadata,
         webhook_url, notify_email, pending_parents, has_children
    from input
  returning *
), event as (
  insert into job_events (job_id, seq, org_id, kind, actor)
  select id, 1, org_id, '{EventKind.ACCEPTED.value}', coalesce('member:' || created_by, 'system') from job
), edge as (
  insert into job_dependencies (child_id, parent_id, on_failure)
  select * from unnest(%(child_ids)s::uuid[], %(parent_ids)s::uuid[], %(on_failure)s::text[])
)
select * from job
"""

# Mark jobs accepted earlier as parents, and say what has become of them. The row lock makes an ending parent and a
# new child wait for each other: see FREE.
ADOPT = """
with parent as (
  select id from jobs where id = any(%(ids)s) and org_id = any(%(org_ids)s) order by id for update
)
update jobs j set has_children = true from parent p where j.id = p.id returning j.id, j.org_id, j.status
"""
