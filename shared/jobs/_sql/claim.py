"""Claiming."""

from __future__ import annotations

from ..states import EventKind, allowed
from .parts import QUEUED, RUNNING, sources

__all__ = ["CLAIM"]


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
  (select org_id from jobs where queue = %(queue)s and status = {QUEUED}
    order by org_id, priority, run_at, id limit 1)
  union all
  select (select j.org_id from jobs j where j.queue = %(queue)s and j.status = {QUEUED} and j.org_id > o.org_id
           order by j.org_id, j.priority, j.run_at, j.id limit 1)
    from orgs o where o.org_id is not null
), busy as (
  select org_id, count(*) as jobs from jobs where queue = %(queue)s and status = {RUNNING} group by org_id
), head as (
  select h.id, h.run_at, o.org_id,
         greatest(0, p.level - floor(extract(epoch from now() - h.run_at) / %(age)s))::int as level
    from orgs o cross join (values (0), (1), (2)) as p (level)
    cross join lateral (
      select j.id, j.run_at from jobs j
       where j.queue = %(queue)s and j.status = {QUEUED} and j.org_id = o.org_id and j.priority = p.level
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
     where j.id = r.id and j.status in {sources(EventKind.STARTED)} and j.run_at <= now() for update skip locked
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
