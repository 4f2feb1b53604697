"""Cancelling, and what ends or frees children."""

from __future__ import annotations

from ..states import TERMINAL, EventKind, Status, allowed
from .parts import DONE, FOLLOW_UPS, MOVED, QUEUED, WAITING, among, sources

__all__ = ["BLOCK", "CANCEL", "COMPLETE_BATCH", "FREE"]


# Cancel jobs, wherever they are. A running one's worker learns it from its next heartbeat; its writes are
# fenced off from this moment on.
CANCEL = f"""
with target as (
  select id from jobs where id = any(%(ids)s) and status in {sources(EventKind.CANCELLED)} order by id for update
), moved as (
  update jobs j
     set status = '{allowed(EventKind.CANCELLED).target.value}', cancelled_at = now(), cancelled_by = %(member_id)s,
         finished_at = now(), lease_until = null, worker_id = null, next_retry_at = null, event_seq = j.event_seq + 1
    from target t where j.id = t.id
  returning {MOVED}, '{EventKind.CANCELLED.value}' as event_kind, %(actor)s::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('reason', %(reason)s::text)) as event_data
)
{FOLLOW_UPS}
"""

# Count ended parents off their waiting children, and queue those that have none left. A statement of its own, so
# that its snapshot is taken after the parents' row locks: a child that was accepted while its parent was ending
# (ADOPT) is then seen here, or has seen the parent ended there.
FREE = f"""
with freed as (
  select d.child_id, count(*)::int as parents
    from job_dependencies d join jobs p on p.id = d.parent_id
   where d.parent_id = any(%(ids)s)
     and (p.status = '{Status.COMPLETED.value}' or (p.status in {DONE} and d.on_failure = 'run'))
   group by d.child_id
), moved as (
  update jobs c
     set pending_parents = c.pending_parents - f.parents,
         status = case when c.pending_parents <= f.parents then {QUEUED} else c.status end,
         event_seq = c.event_seq + case when c.pending_parents <= f.parents then 1 else 0 end
    from freed f where c.id = f.child_id and c.status in {sources(EventKind.UNBLOCKED)}
  returning c.id, c.org_id, c.queue, c.priority, c.status, c.event_seq, c.attempt, c.run_at
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor)
  select id, event_seq, org_id, '{EventKind.UNBLOCKED.value}', attempt, 'parents' from moved where status = {QUEUED}
)
select 'freed' as what, id, org_id, queue, priority, status, run_at <= now() as due, false as has_children,
       null as concurrency_key
  from moved where status = {QUEUED}
"""

# Count finished batches off their completion jobs, and queue those that wait for nothing else.
COMPLETE_BATCH = f"""
with moved as (
  update jobs j
     set pending_parents = j.pending_parents - 1,
         status = case when j.pending_parents <= 1 then {QUEUED} else j.status end,
         event_seq = j.event_seq + case when j.pending_parents <= 1 then 1 else 0 end
   where j.id = any(%(ids)s) and j.status in {sources(EventKind.UNBLOCKED)}
  returning j.id, j.org_id, j.queue, j.priority, j.status, j.event_seq, j.attempt, j.run_at
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor)
  select id, event_seq, org_id, '{EventKind.UNBLOCKED.value}', attempt, 'batch' from moved where status = {QUEUED}
)
select 'freed' as what, id, org_id, queue, priority, status, run_at <= now() as due, false as has_children,
       null as concurrency_key
  from moved where status = {QUEUED}
"""

# End the waiting children of parents that did not complete, as each edge says. A cancelled parent cancels;
# a failed one fails or cancels. Run again on what it moved, until nothing moves.
BLOCK = f"""
with blocked as (
  select distinct on (d.child_id) d.child_id, p.id as parent_id, p.error, p.cancelled_by,
         case when d.on_failure = 'cancel' or p.status = '{Status.CANCELLED.value}'
              then '{Status.CANCELLED.value}' else '{Status.FAILED.value}' end as status
    from job_dependencies d join jobs p on p.id = d.parent_id
   where d.parent_id = any(%(ids)s) and d.on_failure <> 'run'
     and p.status in {among(TERMINAL - {Status.COMPLETED})}
   order by d.child_id, p.status, p.id
), moved as (
  update jobs j
     set status = b.status, finished_at = now(), event_seq = j.event_seq + 1,
         cancelled_at = case when b.status = '{Status.CANCELLED.value}' then now() end,
         cancelled_by = case when b.status = '{Status.CANCELLED.value}' then b.cancelled_by end,
         error = case when b.status = '{Status.FAILED.value}' then
           jsonb_build_object('code', 'job.parent_failed',
             'message', coalesce(b.error ->> 'message', 'The step that this one waits for failed.'),
             'details', jsonb_build_object('parent_id', b.parent_id, 'parent_code', b.error ->> 'code')) end
    from blocked b where j.id = b.child_id and j.status in {sources(EventKind.FAILED, EventKind.CANCELLED)}
     and j.status = {WAITING}
  returning {MOVED}, b.status as event_kind, 'parent:' || b.parent_id::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('error', j.error)) as event_data
)
{FOLLOW_UPS}
"""
