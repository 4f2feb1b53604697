"""What happens to claimed jobs: heartbeats, progress, log lines, their ends, and rescue."""

from __future__ import annotations

from ..states import EventKind, Status
from .parts import DONE, FOLLOW_UPS, MOVED, QUEUED, RUNNING, sources

__all__ = ["HEARTBEAT", "LOG", "PROGRESS", "RESCUE", "SETTLE"]


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
         finished_at = case when o.status in {DONE} then now() end,
         progress = case when o.status = '{Status.COMPLETED.value}' then 100 else j.progress end,
         run_at = case when o.status = {QUEUED} and o.delay is not null
                       then now() + make_interval(secs => o.delay) else j.run_at end,
         next_retry_at = case when o.status = {QUEUED} and o.charge > 0
                              then now() + make_interval(secs => coalesce(o.delay, 0)) end
    from outcome o
   where j.id = o.id and j.attempt = o.attempt
     and j.status in {sources(EventKind.COMPLETED, EventKind.FAILED, EventKind.RETRYING, EventKind.RELEASED)}
  returning {MOVED}, o.kind as event_kind, 'worker:' || %(worker_id)s::text as event_actor,
            jsonb_strip_nulls(jsonb_build_object('error', o.error, 'next_retry_at', j.next_retry_at)) as event_data
)
{FOLLOW_UPS}
"""

# Give jobs whose lease ran out back to the queue, or end them after too many stalls. Any number may run it.
RESCUE = f"""
with lost as (
  select id from jobs where status in {sources(EventKind.STALLED, EventKind.FAILED)} and lease_until < now()
   limit %(limit)s for update skip locked
), moved as (
  update jobs j
     set status = case when j.stall_count >= %(max_stalls)s then '{Status.FAILED.value}' else {QUEUED} end,
         stall_count = j.stall_count + 1, lease_until = null, worker_id = null, event_seq = j.event_seq + 1,
         finished_at = case when j.stall_count >= %(max_stalls)s then now() end,
         error = case when j.stall_count >= %(max_stalls)s then
           jsonb_build_object('code', 'job.stalled', 'message', format(
             'The worker doing this stopped %%s times without finishing, so it was set aside. '
             'Please try again; if it keeps happening, the file itself may be the cause.', j.stall_count + 1))
           else j.error end
    from lost l where j.id = l.id
  returning {MOVED},
            case when j.status = {QUEUED} then '{EventKind.STALLED.value}' else '{EventKind.FAILED.value}' end
              as event_kind,
            'scheduler' as event_actor,
            jsonb_strip_nulls(jsonb_build_object('reason', 'lease ran out', 'stall_count', j.stall_count,
              'error', case when j.status <> {QUEUED} then j.error end)) as event_data
)
{FOLLOW_UPS}
"""
