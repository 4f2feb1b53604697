"""Once more from the start: ended jobs back to the queue, and the children that their end had ended."""

from __future__ import annotations

from ..states import ACTIVE, EventKind, Status, allowed
from .parts import MOVED, QUEUED, WAITING, among, sources

__all__ = ["FAMILY", "LIVING", "LOCK", "LOCK_BATCHES", "MOVE", "WAIT_MORE"]

_MOVABLE = sources(EventKind.REDRIVEN, EventKind.REVIVED)
# The event that ended an ended job is its last one.
_LAST_EVENT = "select e.actor from job_events e where e.job_id = j.id and e.seq = j.event_seq"

# The jobs named, with all that may move when they do: their waiting children, the children that a parent's end ended,
# and theirs; each with what its parents have come to. Visits rows by their keys, whatever the statistics say.
FAMILY = f"""
with recursive family as (
  select j.id, j.has_children and j.status in {_MOVABLE} as descend from jobs j where j.id = any(%(ids)s)
  union
  select c.id, c.descend
    from family f
    cross join lateral (select d.child_id from job_dependencies d where d.parent_id = f.id and f.descend offset 0) d
    cross join lateral (
      select j.id, j.has_children and j.status in {_MOVABLE} as descend from jobs j
       where j.id = d.child_id
         and (j.status = {WAITING}
              or (j.status in {_MOVABLE} and exists ({_LAST_EVENT} and e.actor like 'parent:%%')))
       limit 1
    ) c
)
select j.id, j.org_id, j.type, j.status, j.unique_key, j.pending_parents, j.code, j.payload, e.actor as ended_by,
       p.parents,
       j.batch_id,
       -- The batch whose completion job was cancelled before it was queued.
       case when j.status = '{Status.CANCELLED.value}' and j.pending_parents > 0 then (
         select jsonb_build_object('id', b.id, 'finished', b.finished_at is not null) from batches b
          where b.org_id = j.org_id and b.completion_job_id = j.id limit 1) end as after_batch
  from (select distinct id from family) f
  cross join lateral (
    select j.id, j.org_id, j.type, j.status, j.unique_key, j.pending_parents, j.event_seq, j.batch_id,
           j.error ->> 'code' as code,
           case when %(with_payload)s and j.id = any(%(ids)s) then j.payload end as payload
      from jobs j where j.id = f.id limit 1
  ) j
  left join lateral ({_LAST_EVENT} limit 1) e on true
  cross join lateral (
    select coalesce(jsonb_agg(jsonb_build_object('id', d.parent_id, 'on_failure', d.on_failure, 'status', p.status)),
                    '[]') as parents
      from (select * from job_dependencies d where d.child_id = j.id offset 0) d
      left join lateral (select x.status from jobs x where x.id = d.parent_id limit 1) p on true
  ) p
"""

# The rows that the decision rests on stay as they are until the commit: neither may another parent end meanwhile, nor
# a child be accepted (ADOPT). A statement of its own, so that FAMILY, asked again, sees what they waited for. What has
# completed stays so, and needs no lock.
LOCK = f"""
select id from jobs where id = any(%(ids)s) and status <> '{Status.COMPLETED.value}' order by id for update
"""

# Batches that a completion job may have to wait for again: they finish before this, or after the commit.
LOCK_BATCHES = "select id from batches where id = any(%(ids)s) order by id for update"

# Which of these unique keys a living job has.
LIVING = f"""
select distinct k.org_id, k.key
  from (select distinct * from unnest(%(org_ids)s::uuid[], %(keys)s::text[]) as t (org_id, key)) k
  cross join lateral (select j.id from jobs j where j.org_id = k.org_id and j.unique_key = k.key
                         and j.status in {among(ACTIVE)} limit 1) j
"""

# Once more from the start. The attempt, which is the fence, goes on from where it was. Batches count the jobs as not
# ended again; a completion job that ran does not run again (COMPLETE_BATCH takes waiting ones only).
MOVE = f"""
with input as (
  select * from unnest(%(ids)s::uuid[], %(kinds)s::text[], %(actors)s::text[], %(delays)s::float8[], %(pending)s::int[],
                       %(payloads)s::jsonb[], %(changed)s::jsonb[])
         as t (id, kind, actor, delay, pending, payload, changed)
), before as (
  select j.id, j.status, j.error ->> 'code' as code from jobs j where j.id = any(%(ids)s)
), moved as (
  update jobs j
     set status = case i.kind when '{EventKind.REVIVED.value}' then '{allowed(EventKind.REVIVED).target.value}'
                              else '{allowed(EventKind.REDRIVEN).target.value}' end,
         pending_parents = i.pending, payload = coalesce(i.payload, j.payload),
         run_at = case when i.delay is null then greatest(j.run_at, now())
                       else now() + make_interval(secs => i.delay) end,
         retry_count = 0, stall_count = 0, crash_count = 0, hold = 0, progress = 0, step = null, result = null,
         error = null, finished_at = null, next_retry_at = null, cancelled_at = null, cancelled_by = null,
         lease_until = null, worker_id = null, event_seq = j.event_seq + 1
    from input i join before b on b.id = i.id
   where j.id = i.id and j.status in {_MOVABLE}
  returning {MOVED}, b.status as status_before, i.kind as event_kind, i.actor as event_actor,
            jsonb_strip_nulls(jsonb_build_object('previous_error', b.code, 'changed', i.changed)) as event_data
), event as (
  insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
  select id, event_seq, org_id, event_kind, attempt, event_actor, event_data from moved
), tally as (
  select batch_id, count(*) filter (where status_before = '{Status.FAILED.value}') as failed,
         count(*) filter (where status_before = '{Status.CANCELLED.value}') as cancelled
    from moved where batch_id is not null group by batch_id
), held as (
  select b.id from batches b where b.id in (select batch_id from tally) order by b.id for update
), batch as (
  update batches b
     set failed = b.failed - t.failed, cancelled = b.cancelled - t.cancelled, finished_at = null,
         cancelled_at = null, cancelled_by = null
    from held h join tally t on t.batch_id = h.id where b.id = h.id
)
select id, queue, priority, status, status = {QUEUED} and run_at <= now() as due from moved
"""

# Waiting children that a parent's failure had been counted off from ('run') wait for it again.
WAIT_MORE = f"""
update jobs j set pending_parents = j.pending_parents + w.more
  from unnest(%(ids)s::uuid[], %(more)s::int[]) as w (id, more)
 where j.id = w.id and j.status = {WAITING}
returning j.id
"""
