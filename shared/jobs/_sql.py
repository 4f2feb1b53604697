"""Every statement that writes a job, named and described. Executed by psycopg, sync or async.

A change, its event, the batch counters and the notifications it owes are one statement; the children it sets free
or ends follow in the same transaction. All stand or fall together (DESIGN invariants 1, 3, 4, 8, 9).
Parameters are psycopg's named ones. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.contracts import NOTIFY_EMAIL, NOTIFY_WEBHOOK

from .states import TERMINAL, EventKind, Priority, Status, allowed

__all__ = ["ADOPT", "BLOCK", "CANCEL", "CLAIM", "FREE", "HEARTBEAT", "LOG", "PROGRESS", "RESCUE", "SETTLE", "SUBMIT"]


def _in(statuses: Iterable[Status]) -> str:
    return "(" + ", ".join(f"'{s.value}'" for s in sorted(statuses)) + ")"


def _from(*kinds: EventKind) -> str:
    """The source states that all of these transitions accept."""
    return _in(frozenset.intersection(*(allowed(k).sources for k in kinds)))


_DONE = _in(TERMINAL)
_QUEUED = f"'{Status.QUEUED.value}'"
_WAITING = f"'{Status.WAITING.value}'"
_RUNNING = f"'{Status.PROCESSING.value}'"

# What every statement that moves jobs returns from its ``moved`` CTE, in this order.
_MOVED = """j.id, j.org_id, j.created_by, j.type, j.queue, j.status, j.priority, j.attempt, j.event_seq,
         j.batch_id, j.webhook_url, j.notify_email, j.run_at, j.has_children"""

# What follows from jobs that moved: their events, their batches' counters, and the notifications owed.
# Children follow by FREE and BLOCK, in the same transaction.
# ``moved`` carries event_kind, event_actor, event_data beside _MOVED.
_FOLLOW_UPS = f"""
, moved_event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
  select id, event_seq, org_id, event_kind, attempt, event_actor, event_data from moved
), tally as (
  select batch_id,
         count(*) filter (where status = '{Status.COMPLETED.value}') as completed,
         count(*) filter (where status = '{Status.FAILED.value}') as failed,
         count(*) filter (where status = '{Status.CANCELLED.value}') as cancelled
    from moved where batch_id is not null and status in {_DONE} group by batch_id
), batch as (
  update batches b
     set completed = b.completed + t.completed, failed = b.failed + t.failed, cancelled = b.cancelled + t.cancelled,
         finished_at = case when b.completed + b.failed + b.cancelled + t.completed + t.failed + t.cancelled >= b.total
                            then now() end
    from tally t where b.id = t.batch_id
  returning b.id, b.org_id, b.created_by, b.webhook_url, b.finished_at
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
   where m.status in {_DONE} and n.target is not null
  union all
  select b.org_id, b.created_by, '{NOTIFY_WEBHOOK.name}', '{NOTIFY_WEBHOOK.queue}',
         {NOTIFY_WEBHOOK.policy.time_limit}::float8, {NOTIFY_WEBHOOK.policy.max_retries},
         jsonb_build_object('url', b.webhook_url, 'event', 'batch.completed', 'subject_id', b.id, 'occurred_at', now())
    from batch b where b.finished_at is not null and b.webhook_url is not null
), note as (
  insert into jobs (id, org_id, created_by, type, queue, status, priority, max_retries, time_limit, payload)
  select new_id(), org_id, created_by, type, queue, {_QUEUED}, {Priority.NORMAL.value}, max_retries, time_limit, payload
    from owed
  returning id, org_id, queue, priority, status, attempt, batch_id, run_at
), note_event as (
  insert into job_events (job_id, seq, org_id, kind, actor)
  select id, 1, org_id, '{EventKind.ACCEPTED.value}', 'outbox' from note
)
select 'moved' as what, id, org_id, queue, priority, status, attempt, batch_id, run_at <= now() as due,
       has_children from moved
union all
select 'owed', id, org_id, queue, priority, status, attempt, batch_id, true, false from note
"""

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
         case when pending_parents > 0 then {_WAITING} else {_QUEUED} end,
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

# Claim the best due jobs of a queue, whichever message woke the worker.
#
# Order: priority, where {age} seconds of waiting lift a job one level (so a low job is level with new high ones
# after twice that, and no stream of work starves it); then turn, the organisation's jobs in flight plus its place
# in this pick (so organisations alternate, however many jobs one of them has); then age.
# ``orgs`` is a loose index scan: one probe of jobs_claim_idx for each organisation that has work, not a pass over
# its jobs, so the cost follows the organisations at work and not the depth of the backlog. It is written so that no
# other plan is possible, whatever the statistics say (those of a fresh table are of no use): the order is that of
# jobs_claim_idx alone, and ``picked`` visits the ranked jobs one by one, best first, by their key.
CLAIM = f"""
with recursive orgs as (
  (select org_id from jobs where queue = %(queue)s and status = {_QUEUED}
    order by org_id, priority, run_at, id limit 1)
  union all
  select (select j.org_id from jobs j where j.queue = %(queue)s and j.status = {_QUEUED} and j.org_id > o.org_id
           order by j.org_id, j.priority, j.run_at, j.id limit 1)
    from orgs o where o.org_id is not null
), busy as (
  select org_id, count(*) as jobs from jobs where queue = %(queue)s and status = {_RUNNING} group by org_id
), head as (
  select h.id, h.run_at, o.org_id,
         greatest(0, p.level - floor(extract(epoch from now() - h.run_at) / %(age)s))::int as level
    from orgs o cross join (values (0), (1), (2)) as p (level)
    cross join lateral (
      select j.id, j.run_at from jobs j
       where j.queue = %(queue)s and j.status = {_QUEUED} and j.org_id = o.org_id and j.priority = p.level
         and j.run_at <= now()
       order by j.run_at, j.id limit %(window)s
    ) h
   where o.org_id is not null
), ranked as (
  select h.id, h.level, h.run_at,
         coalesce(b.jobs, 0) + row_number() over (partition by h.org_id order by h.level, h.run_at, h.id) as turn
    from head h left join busy b on b.org_id = h.org_id
), picked as materialized (
  select l.id from (select id from ranked order by level, turn, run_at, id) r cross join lateral (
    select j.id from jobs j
     where j.id = r.id and j.status in {_from(EventKind.STARTED)} and j.run_at <= now() for update skip locked
  ) l
  limit %(limit)s
), claimed as (
  update jobs j
     set status = '{allowed(EventKind.STARTED).target.value}', attempt = j.attempt + 1,
         lease_until = now() + make_interval(secs => %(lease)s), worker_id = %(worker_id)s, started_at = now(),
         next_retry_at = null, progress = 0, step = null, event_seq = j.event_seq + 1
    from picked p where j.id = p.id
  returning j.id, j.org_id, j.created_by, j.type, j.queue, j.priority, j.attempt, j.max_retries, j.retry_count,
            j.stall_count, j.time_limit, j.batch_id, j.payload, j.created_at, j.run_at, j.started_at, j.event_seq
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor)
  select id, event_seq, org_id, '{EventKind.STARTED.value}', attempt, 'worker:' || %(worker_id)s::text from claimed
)
select * from claimed
"""

# Renew every lease this process holds, and say of each that was not renewed what became of the job: null when the row
# is gone or another attempt's; still processing when its row was locked (by its own settling, say) and is the next
# beat's. It waits for no lock, so that one job's long transaction cannot cost the others their leases.
HEARTBEAT = f"""
with held as (
  select * from unnest(%(ids)s::uuid[], %(attempts)s::int[]) as t (id, attempt)
), mine as (
  select j.id from held h join jobs j on j.id = h.id
   where j.attempt = h.attempt and j.status = {_RUNNING} for update of j skip locked
), renewed as (
  update jobs j set lease_until = now() + make_interval(secs => %(lease)s) from mine m where j.id = m.id
  returning j.id
), alive as (
  insert into workers (id, queue, host, pid, concurrency)
  values (%(worker_id)s, %(queue)s, %(host)s, %(pid)s, %(concurrency)s)
  on conflict (id) do update set seen_at = now()
)
select h.id, h.attempt, case when j.attempt = h.attempt then j.status end as status
  from held h left join jobs j on j.id = h.id
 where h.id not in (select id from renewed)
"""

# Progress and log lines, under the fence. No row: the job is no longer this attempt's.
PROGRESS = f"""
with moved as (
  update jobs set progress = greatest(progress, %(percent)s), step = %(step)s, event_seq = event_seq + 1
   where id = %(id)s and attempt = %(attempt)s and status = {_RUNNING}
  returning id, org_id, event_seq, attempt, progress, step
)
insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
select id, event_seq, org_id, '{EventKind.PROGRESS.value}', attempt, 'worker:' || %(worker_id)s::text,
       jsonb_build_object('percent', progress, 'step', step)
  from moved
returning seq
"""

LOG = f"""
with moved as (
  update jobs set event_seq = event_seq + 1
   where id = %(id)s and attempt = %(attempt)s and status = {_RUNNING}
  returning id, org_id, event_seq, attempt
)
insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
select id, event_seq, org_id, '{EventKind.LOG.value}', attempt, 'worker:' || %(worker_id)s::text, %(data)s from moved
returning seq
"""

# End attempts, under the fence: complete, fail, or give back to the queue (retry, snooze, release).
SETTLE = f"""
with outcome as (
  select * from unnest(%(ids)s::uuid[], %(attempts)s::int[], %(statuses)s::text[], %(kinds)s::text[],
                       %(results)s::jsonb[], %(errors)s::jsonb[], %(delays)s::float8[], %(charges)s::int[])
         as t (id, attempt, status, kind, result, error, delay, charge)
), moved as (
  update jobs j
     set status = o.status, result = o.result,
         error = case when o.status = '{Status.COMPLETED.value}' then null else coalesce(o.error, j.error) end,
         retry_count = j.retry_count + o.charge, lease_until = null, worker_id = null,
         event_seq = j.event_seq + 1,
         finished_at = case when o.status in {_DONE} then now() end,
         progress = case when o.status = '{Status.COMPLETED.value}' then 100 else j.progress end,
         run_at = case when o.status = {_QUEUED} and o.delay is not null
                       then now() + make_interval(secs => o.delay) else j.run_at end,
         next_retry_at = case when o.status = {_QUEUED} and o.charge > 0
                              then now() + make_interval(secs => coalesce(o.delay, 0)) end
    from outcome o
   where j.id = o.id and j.attempt = o.attempt
     and j.status in {_from(EventKind.COMPLETED, EventKind.FAILED, EventKind.RETRYING, EventKind.RELEASED)}
  returning {_MOVED}, o.kind as event_kind, 'worker:' || %(worker_id)s::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('error', o.error, 'next_retry_at', j.next_retry_at)) as event_data
)
{_FOLLOW_UPS}
"""

# Give jobs whose lease ran out back to the queue, or end them after too many stalls. Any number may run it.
RESCUE = f"""
with lost as (
  select id from jobs where status in {_from(EventKind.STALLED, EventKind.FAILED)} and lease_until < now()
   limit %(limit)s for update skip locked
), moved as (
  update jobs j
     set status = case when j.stall_count >= %(max_stalls)s then '{Status.FAILED.value}' else {_QUEUED} end,
         stall_count = j.stall_count + 1, lease_until = null, worker_id = null, event_seq = j.event_seq + 1,
         finished_at = case when j.stall_count >= %(max_stalls)s then now() end,
         error = case when j.stall_count >= %(max_stalls)s then
           jsonb_build_object('code', 'job.stalled', 'message', format(
             'The worker doing this stopped %%s times without finishing, so it was set aside. '
             'Please try again; if it keeps happening, the file itself may be the cause.', j.stall_count + 1))
           else j.error end
    from lost l where j.id = l.id
  returning {_MOVED},
            case when j.status = {_QUEUED} then '{EventKind.STALLED.value}' else '{EventKind.FAILED.value}' end
              as event_kind,
            'scheduler' as event_actor,
            jsonb_strip_nulls(jsonb_build_object('reason', 'lease ran out', 'stall_count', j.stall_count,
              'error', case when j.status <> {_QUEUED} then j.error end)) as event_data
)
{_FOLLOW_UPS}
"""

# Cancel jobs, wherever they are. A running one's worker learns it from its next heartbeat; its writes are
# fenced off from this moment on.
CANCEL = f"""
with target as (
  select id from jobs where id = any(%(ids)s) and status in {_from(EventKind.CANCELLED)} order by id for update
), moved as (
  update jobs j
     set status = '{allowed(EventKind.CANCELLED).target.value}', cancelled_at = now(), cancelled_by = %(member_id)s,
         finished_at = now(), lease_until = null, worker_id = null, next_retry_at = null, event_seq = j.event_seq + 1
    from target t where j.id = t.id
  returning {_MOVED}, '{EventKind.CANCELLED.value}' as event_kind, %(actor)s::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('reason', %(reason)s::text)) as event_data
)
{_FOLLOW_UPS}
"""

# Count ended parents off their waiting children, and queue those that have none left. A statement of its own, so
# that its snapshot is taken after the parents' row locks: a child that was accepted while its parent was ending
# (ADOPT) is then seen here, or has seen the parent ended there.
FREE = f"""
with freed as (
  select d.child_id, count(*)::int as parents
    from job_dependencies d join jobs p on p.id = d.parent_id
   where d.parent_id = any(%(ids)s)
     and (p.status = '{Status.COMPLETED.value}' or (p.status in {_DONE} and d.on_failure = 'run'))
   group by d.child_id
), moved as (
  update jobs c
     set pending_parents = c.pending_parents - f.parents,
         status = case when c.pending_parents <= f.parents then {_QUEUED} else c.status end,
         event_seq = c.event_seq + case when c.pending_parents <= f.parents then 1 else 0 end
    from freed f where c.id = f.child_id and c.status in {_from(EventKind.UNBLOCKED)}
  returning c.id, c.org_id, c.queue, c.priority, c.status, c.event_seq, c.attempt, c.batch_id, c.run_at
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor)
  select id, event_seq, org_id, '{EventKind.UNBLOCKED.value}', attempt, 'parents' from moved where status = {_QUEUED}
)
select 'freed' as what, id, org_id, queue, priority, status, attempt, batch_id, run_at <= now() as due,
       false as has_children
  from moved where status = {_QUEUED}
"""

# Mark jobs accepted earlier as parents, and say what has become of them. The row lock makes an ending parent and a
# new child wait for each other: see FREE.
ADOPT = """
with parent as (
  select id from jobs where id = any(%(ids)s) and org_id = any(%(org_ids)s) order by id for update
)
update jobs j set has_children = true from parent p where j.id = p.id returning j.id, j.org_id, j.status
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
     and p.status in {_in(TERMINAL - {Status.COMPLETED})}
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
    from blocked b where j.id = b.child_id and j.status in {_from(EventKind.FAILED, EventKind.CANCELLED)}
     and j.status = {_WAITING}
  returning {_MOVED}, b.status as event_kind, 'parent:' || b.parent_id::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('error', j.error)) as event_data
)
{_FOLLOW_UPS}
"""
