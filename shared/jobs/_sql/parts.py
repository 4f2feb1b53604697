"""What the statements share: states as SQL, and what follows from jobs that moved."""

from __future__ import annotations

from collections.abc import Iterable

from shared.contracts import NOTIFY_EMAIL, NOTIFY_WEBHOOK

from ..states import TERMINAL, EventKind, Priority, Status, allowed

__all__ = ["DONE", "FOLLOW_UPS", "MOVED", "QUEUED", "RUNNING", "WAITING", "among", "sources"]


def among(statuses: Iterable[Status]) -> str:
    """A SQL list of statuses."""
    return "(" + ", ".join(f"'{s.value}'" for s in sorted(statuses)) + ")"


def sources(*kinds: EventKind) -> str:
    """The source states that all of these transitions accept."""
    return among(frozenset.intersection(*(allowed(k).sources for k in kinds)))


DONE = among(TERMINAL)
QUEUED = f"'{Status.QUEUED.value}'"
WAITING = f"'{Status.WAITING.value}'"
RUNNING = f"'{Status.PROCESSING.value}'"

# What every statement that moves jobs returns from its ``moved`` CTE, in this order.
MOVED = """j.id, j.org_id, j.created_by, j.type, j.queue, j.status, j.priority, j.attempt, j.event_seq,
         j.batch_id, j.webhook_url, j.notify_email, j.run_at, j.has_children, j.concurrency_key"""

# What follows from jobs that moved: their events, their batches' counters, and the notifications owed.
# Children, and the completion jobs of batches that finished, follow by FREE, BLOCK and COMPLETE_BATCH, in the same
# transaction. ``moved`` carries event_kind, event_actor, event_data beside MOVED.
FOLLOW_UPS = f"""
, moved_event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
  select id, event_seq, org_id, event_kind, attempt, event_actor, event_data from moved
), tally as (
  select batch_id,
         count(*) filter (where status = '{Status.COMPLETED.value}') as completed,
         count(*) filter (where status = '{Status.FAILED.value}') as failed,
         count(*) filter (where status = '{Status.CANCELLED.value}') as cancelled
    from moved where batch_id is not null and status in {DONE} group by batch_id
), batch as (
  update batches b
     set completed = b.completed + t.completed, failed = b.failed + t.failed, cancelled = b.cancelled + t.cancelled,
         finished_at = case when b.completed + b.failed + b.cancelled + t.completed + t.failed + t.cancelled >= b.total
                            then coalesce(b.finished_at, now()) end
    from tally t where b.id = t.batch_id
  returning b.id, b.org_id, b.created_by, b.webhook_url, b.completion_job_id,
            -- by these jobs and not before: one past its total does not finish again
            b.completed + b.failed + b.cancelled >= b.total
              and b.completed + b.failed + b.cancelled - t.completed - t.failed - t.cancelled < b.total as finishes
), owed as (
  select m.org_id, m.created_by, n.type, n.queue, n.time_limit, n.max_retries,
         jsonb_build_object(n.target_field, n.target, 'event', 'job.' || m.status, 'subject_id', m.id,
                            'occurred_at', now()) as payload
    from moved m cross join lateral (values
      ('{NOTIFY_WEBHOOK.name}', '{NOTIFY_WEBHOOK.queue}', {NOTIFY_WEBHOOK.policy.time_limit}::float8,
       {NOTIFY_WEBHOOK.policy.max_retries}, 'url', m.webhook_url),
      ('{NOTIFY_EMAIL.name}', '{NOTIFY_EMAIL.queue}', {NOTIFY_EMAIL.policy.time_limit}::float8,
       {NOTIFY_EMAIL.policy.max_retries}, 'to',
       case when m.status <> '{Status.CANCELLED.value}' then m.notify_email end)
    ) as n (type, queue, time_limit, max_retries, target_field, target)
   where m.status in {DONE} and n.target is not null
  union all
  select b.org_id, b.created_by, '{NOTIFY_WEBHOOK.name}', '{NOTIFY_WEBHOOK.queue}',
         {NOTIFY_WEBHOOK.policy.time_limit}::float8, {NOTIFY_WEBHOOK.policy.max_retries},
         jsonb_build_object('url', b.webhook_url, 'event', 'batch.completed', 'subject_id', b.id, 'occurred_at', now())
    from batch b where b.finishes and b.webhook_url is not null
), note as (
  insert into jobs (id, org_id, created_by, type, queue, status, priority, max_retries, time_limit, payload)
  select new_id(), org_id, created_by, type, queue, {QUEUED}, {Priority.NORMAL.value}, max_retries, time_limit, payload
    from owed
  returning id, org_id, queue, priority, status, attempt, batch_id, run_at
), note_event as (
  insert into job_events (job_id, seq, org_id, kind, actor)
  select id, 1, org_id, '{EventKind.ACCEPTED.value}', 'outbox' from note
)
select 'moved' as what, id, org_id, queue, priority, status, run_at <= now() as due, has_children, concurrency_key
  from moved
union all
select 'owed', id, org_id, queue, priority, status, true, false, null from note
union all
select 'batch', completion_job_id, org_id, null, null, null, false, false, null
  from batch where finishes and completion_job_id is not null
"""
