"""What happens to claimed jobs: heartbeats, progress, log lines, their ends, and rescue."""

from __future__ import annotations

from ..states import EventKind, Hold, Status, allowed
from .parts import DONE, FOLLOW_UPS, MOVED, QUEUED, RUNNING, sources

__all__ = ["HEARTBEAT", "LOG", "PROGRESS", "RELEASE_ORPHANS", "RESCUE", "SETTLE", "SETTLE_PLAIN"]


# Renew every lease this process holds, and say of each that was not renewed what became of the job: null when the row
# is gone or another attempt's; still processing when its row was locked (by its own settling, say) and is the next
# beat's. It waits for no lock, so that one job's long transaction cannot cost the others their leases.
HEARTBEAT = f"""
with held as (
  select * from unnest(%(ids)s::uuid[], %(attempts)s::int[]) as t (id, attempt)
), mine as (
  select j.id from held h join jobs j on j.id = h.id
   where j.attempt = h.attempt and j.status = {RUNNING} for update of j skip locked
), renewed as (
  update jobs j set lease_until = now() + make_interval(secs => %(lease)s) from mine m where j.id = m.id
  returning j.id, j.attempt
), alive as (
  insert into workers (id, queue, host, pid, concurrency, lease_seconds, job_types)
  values (%(worker_id)s, %(queue)s, %(host)s, %(pid)s, %(concurrency)s, %(lease)s, %(job_types)s)
  on conflict (id) do update set seen_at = now()
)
select h.id, h.attempt, case when j.attempt = h.attempt then j.status end as status
  from held h left join jobs j on j.id = h.id
 where (h.id, h.attempt) not in (select id, attempt from renewed)
"""

# Progress and log lines, under the fence. No row: the job is no longer this attempt's.
PROGRESS = f"""
with moved as (
  update jobs set progress = greatest(progress, %(percent)s), step = %(step)s, event_seq = event_seq + 1
   where id = %(id)s and attempt = %(attempt)s and status = {RUNNING}
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
   where id = %(id)s and attempt = %(attempt)s and status = {RUNNING}
  returning id, org_id, event_seq, attempt
)
insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
select id, event_seq, org_id, '{EventKind.LOG.value}', attempt, 'worker:' || %(worker_id)s::text, %(data)s from moved
returning seq
"""

_OUTCOME = """with outcome as (
  select * from unnest(%(ids)s::uuid[], %(attempts)s::int[], %(statuses)s::text[], %(kinds)s::text[],
                       %(results)s::jsonb[], %(errors)s::jsonb[], %(delays)s::float8[], %(charges)s::int[])
         as t (id, attempt, status, kind, result, error, delay, charge)
)"""
_ENDED = f"""update jobs j
     set status = o.status, result = o.result,
         error = case when o.status = '{Status.COMPLETED.value}' then null else coalesce(o.error, j.error) end,
         retry_count = j.retry_count + o.charge, lease_until = null, worker_id = null,
         event_seq = j.event_seq + 1,
         finished_at = case when o.status in {DONE} then now() end,
         progress = case when o.status = '{Status.COMPLETED.value}' then 100 else j.progress end,
         run_at = case when o.status = {QUEUED} and o.delay is not null
                       then now() + make_interval(secs => o.delay) else j.run_at end,
         next_retry_at = case when o.status = {QUEUED} and o.charge > 0
                              then now() + make_interval(secs => coalesce(o.delay, 0)) end
    from outcome o
   where j.id = o.id and j.attempt = o.attempt
     and j.status in {sources(EventKind.COMPLETED, EventKind.FAILED, EventKind.RETRYING, EventKind.RELEASED)}"""
_EVENT = """o.kind as event_kind, 'worker:' || %(worker_id)s::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('error', o.error, 'next_retry_at', j.next_retry_at)) as event_data"""

# End attempts, under the fence: complete, fail, or give back to the queue (retry, snooze, release).
SETTLE = f"""
{_OUTCOME}, moved as (
  {_ENDED}
  returning {MOVED}, {_EVENT}
)
{FOLLOW_UPS}
"""

# The same for jobs that nothing follows from, in one statement of its own; whatever else is among them is left for
# SETTLE. What follows is asked of the row as it is locked, so a child accepted meanwhile is not missed.
SETTLE_PLAIN = f"""
{_OUTCOME}, moved as (
  {_ENDED}
     and j.concurrency_key is null
     and (o.status = {QUEUED} or not (j.has_children or j.batch_id is not null or j.webhook_url is not null
                                      or j.notify_email is not null))
  returning j.id, j.org_id, j.queue, j.status, j.priority, j.attempt, j.event_seq, j.run_at, {_EVENT}
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
  select id, event_seq, org_id, event_kind, attempt, event_actor, event_data from moved
)
select 'moved' as what, id, org_id, queue, priority, status, run_at <= now() as due, false as has_children,
       null as concurrency_key
  from moved
"""

# Give jobs whose lease ran out back to the queue, or end them after too many times. Any number may run it.
# A worker that was heard of since it last renewed this lease is alive, so the job stalled; else the process died, or
# was cut off. The two are counted apart, and neither costs a retry. Two deaths set a job apart (Hold.ALONE).
# Just after Postgres itself was away nobody is judged: workers that could not reach it renew or give back first.
RESCUE = f"""
with lost as (
  select j.id, coalesce(w.seen_at > j.lease_until - make_interval(secs => w.lease_seconds / 2), false) as alive
    from jobs j left join workers w on w.id = j.worker_id
   where j.status in {sources(EventKind.STALLED, EventKind.CRASHED, EventKind.FAILED)} and j.lease_until < now()
     and pg_postmaster_start_time() < now() - make_interval(secs => %(settle_seconds)s)
   limit %(limit)s for update of j skip locked
), verdict as (
  select j.id, l.alive,
         case when l.alive then j.stall_count >= %(max_stalls)s else j.crash_count >= %(max_crashes)s end as dead
    from lost l join jobs j on j.id = l.id
), moved as (
  update jobs j
     set status = case when v.dead then '{Status.FAILED.value}' else {QUEUED} end,
         stall_count = j.stall_count + v.alive::int, crash_count = j.crash_count + (not v.alive)::int,
         hold = case when not v.alive and not v.dead and j.crash_count + 1 >= %(max_crashes)s
                     then {Hold.ALONE.value} else j.hold end,
         lease_until = null, worker_id = null, event_seq = j.event_seq + 1,
         finished_at = case when v.dead then now() end,
         error = case when not v.dead then j.error
           when v.alive then jsonb_build_object('code', 'job.stalled', 'message', format(
             'This stood still %%s times without finishing, so it was set aside. '
             'Please try again; if it keeps happening, the file itself may be the cause.', j.stall_count + 1))
           else jsonb_build_object('code', 'job.crashed', 'message', format(
             'The program doing this ended %%s times in the middle of it, so it was set aside. '
             'Please try again; if it keeps happening, the file itself may be the cause.', j.crash_count + 1)) end
    from verdict v where j.id = v.id
  returning {MOVED},
            case when v.dead then '{EventKind.FAILED.value}' when v.alive then '{EventKind.STALLED.value}'
                 else '{EventKind.CRASHED.value}' end as event_kind,
            'scheduler' as event_actor,
            jsonb_strip_nulls(jsonb_build_object('reason', 'lease ran out', 'stall_count', j.stall_count,
              'crash_count', j.crash_count, 'error', case when v.dead then j.error end)) as event_data
)
{FOLLOW_UPS}
"""

# Give back what is in this process's name although it runs no such thing: jobs of a claim whose answer was lost, and
# of runs that ended while Postgres was away. Charged to nobody. Half a lease is left for answers still on their way.
RELEASE_ORPHANS = f"""
with orphan as (
  select id from jobs
   where queue = %(queue)s and status in {sources(EventKind.RELEASED)} and worker_id = %(worker_id)s
     and lease_until < now() + make_interval(secs => %(lease)s / 2) and id <> all(%(ids)s)
   for update skip locked
), moved as (
  update jobs j
     set status = '{allowed(EventKind.RELEASED).target.value}', lease_until = null, worker_id = null,
         event_seq = j.event_seq + 1
    from orphan o where j.id = o.id
  returning {MOVED}, '{EventKind.RELEASED.value}' as event_kind, 'worker:' || %(worker_id)s::text as event_actor,
            '{{"reason": "not running here"}}'::jsonb as event_data
)
{FOLLOW_UPS}
"""
