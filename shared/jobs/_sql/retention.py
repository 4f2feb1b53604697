"""Deleting jobs that are no longer kept, and what belongs to them.

Nobody waits for these statements: rows that another transaction holds are passed over, and are the next round's.
``exists (… offset 0)`` keeps the planner from turning a probe for each row into a pass over a whole table.
"""

from __future__ import annotations

from ..states import ACTIVE, Status
from .parts import among

__all__ = [
    "DELETE",
    "DELETE_BATCHES",
    "DELETE_BUCKETS",
    "DELETE_EDGES",
    "DELETE_EVENTS",
    "DELETE_KEYS",
    "DELETE_WORKERS",
    "DUE_BY_AGE",
    "DUE_BY_COUNT",
    "LOCK",
    "id_before",
]

# A hundred years: longer is for ever, and must not leave the calendar.
_SECONDS = "least(greatest({hours}, 0), 876000) * 3600"


def id_before(moment: str) -> str:
    """The least UUIDv7 of a moment: ids below it were made earlier. An ended job's id is older than its end."""
    milliseconds = f"greatest(0, extract(epoch from {moment}) * 1000)::bigint"
    return f"(lpad(to_hex({milliseconds}), 12, '0') || repeat('0', 20))::uuid"


# Nothing needs the job ``j``: no child that has not ended names it, and its batch, if it has one, has finished.
_UNNEEDED = f"""not (j.has_children and exists (
         select from job_dependencies d join jobs c on c.id = d.child_id
          where d.parent_id = j.id and c.status in {among(ACTIVE)} offset 0))
     and (j.batch_id is null or not exists (
         select from batches b where b.id = j.batch_id and b.finished_at is null offset 0))"""

# Beside that, by itself a job goes only when its notifications, whose bodies are made from its row, have had their
# time (1.5 h of tries), and no dead parent is kept that would bring it back (redrive).
_DUE = f"""{_UNNEEDED}
     and ((j.webhook_url is null and j.notify_email is null) or j.finished_at < now() - interval '2 hours')
     and (j.status = '{Status.COMPLETED.value}' or not exists (
         select from job_dependencies d join jobs p on p.id = d.parent_id
          where d.child_id = j.id and p.status = '{Status.FAILED.value}' offset 0))"""

# Every organisation that has jobs, one probe of jobs_org_idx for each.
_ORGS = """orgs as (
  (select org_id from jobs order by org_id limit 1)
  union all
  select (select j.org_id from jobs j where j.org_id > o.org_id order by j.org_id limit 1)
    from orgs o where o.org_id is not null
)"""

# Ended jobs past their time, oldest first in each organisation. A dead letter is kept no shorter than others.
# The id bounds the scan of jobs_org_idx: where nothing is due, it is one probe for each organisation and status.
DUE_BY_AGE = f"""
with recursive {_ORGS}, rule as materialized (
  select o.org_id, s.status, now() - make_interval(secs => {_SECONDS.format(hours="s.hours")}) as cutoff
    from orgs o left join organisations g on g.id = o.org_id
    cross join lateral (values
      ('{Status.COMPLETED.value}', coalesce(g.job_retention_hours, %(hours)s::float8)),
      ('{Status.CANCELLED.value}', coalesce(g.job_retention_hours, %(hours)s::float8)),
      ('{Status.FAILED.value}', greatest(g.job_retention_hours, %(dead_letter_hours)s::float8))
    ) as s (status, hours)
   where o.org_id is not null
), due as materialized (
  select d.id from rule r cross join lateral (
    select j.id from jobs j
     where j.org_id = r.org_id and j.status = r.status and j.id < {id_before("r.cutoff")} and j.finished_at < r.cutoff
     and {_DUE}
     order by j.id limit %(limit)s for update of j skip locked
  ) d limit %(limit)s
)
select id from due
"""

# Completed and cancelled jobs beyond the newest that an organisation keeps. Dead letters go by age alone.
DUE_BY_COUNT = f"""
with recursive {_ORGS}, rule as materialized (
  select o.org_id, coalesce(g.job_retention_count, %(count)s)::bigint as keep
    from orgs o left join organisations g on g.id = o.org_id
   where o.org_id is not null and coalesce(g.job_retention_count, %(count)s) > 0
), beyond as materialized (
  select r.org_id, e.id from rule r cross join lateral (
    select id from (
      (select j.id from jobs j where j.org_id = r.org_id and j.status = '{Status.COMPLETED.value}' order by j.id desc)
      union all
      (select j.id from jobs j where j.org_id = r.org_id and j.status = '{Status.CANCELLED.value}' order by j.id desc)
    ) ended order by id desc offset r.keep limit 1
  ) e
), due as materialized (
  select d.id from beyond x cross join (values ('{Status.COMPLETED.value}'), ('{Status.CANCELLED.value}')) as s (status)
    cross join lateral (
      select j.id from jobs j where j.org_id = x.org_id and j.status = s.status and j.id <= x.id
       and {_DUE}
       order by j.id limit %(limit)s for update of j skip locked
    ) d limit %(limit)s
)
select id from due
"""

LOCK = """
select id from jobs where id = any(%(ids)s) and status = any(%(statuses)s) for update skip locked
"""

# Locked before, so that this sees the children that were accepted until then (ADOPT locks their parents).
DELETE = f"""
delete from jobs j where j.id = any(%(ids)s) and j.status = any(%(statuses)s)
     and {_UNNEEDED}
returning j.id
"""

# Both by their rows' places, found by key: nobody changes them once the job is locked.
DELETE_EVENTS = """
with gone as (
  delete from job_events where ctid = any(array(
    select e.ctid from unnest(%(ids)s::uuid[]) as t (id)
     cross join lateral (select x.ctid from job_events x where x.job_id = t.id offset 0) e))
  returning 1
)
select count(*)::int as rows from gone
"""

DELETE_EDGES = """
with gone as (
  delete from job_dependencies where ctid = any(array(
    select d.ctid from unnest(%(ids)s::uuid[]) as t (id)
     cross join lateral ((select x.ctid from job_dependencies x where x.child_id = t.id offset 0)
                         union all (select x.ctid from job_dependencies x where x.parent_id = t.id offset 0)) d))
  returning 1
)
select count(*)::int as rows from gone
"""

# Batches whose jobs have all gone. One that never finished though it has no jobs never will.
DELETE_BATCHES = f"""
with bound as materialized (
  select now() - make_interval(secs => {
    _SECONDS.format(hours="least(%(hours)s::float8, (select min(job_retention_hours) from organisations))")
}) as cutoff
), due as materialized (
  select b.id from batches b left join organisations g on g.id = b.org_id
   where b.id < (select {id_before("cutoff")} from bound)
     and coalesce(b.finished_at, b.created_at)
         < now() - make_interval(secs => {_SECONDS.format(hours="coalesce(g.job_retention_hours, %(hours)s::float8)")})
     and not exists (select from jobs j where j.batch_id = b.id offset 0)
     and not exists (select from jobs j where j.id = b.completion_job_id and j.status in {among(ACTIVE)} offset 0)
   order by b.id limit %(limit)s for update of b skip locked
)
delete from batches b using due d where b.id = d.id
"""

# What has no index by age is looked through seldom, and by its rows' places.
DELETE_KEYS = f"""
delete from idempotency_keys where ctid = any(array(
  select ctid from idempotency_keys
   where created_at < now() - make_interval(secs => {_SECONDS.format(hours="greatest(24, %(hours)s::float8)")})
   limit %(limit)s for update skip locked))
"""

# Not just after Postgres was away: workers that could not reach it are about to be heard of again.
DELETE_WORKERS = """
delete from workers where ctid = any(array(
  select ctid from workers
   where seen_at < now() - interval '1 hour'
     and pg_postmaster_start_time() < now() - make_interval(secs => %(settle_seconds)s)
   limit %(limit)s for update skip locked))
"""

# A bucket that nothing was taken from for its whole period is full, and so is one that does not exist.
DELETE_BUCKETS = """
delete from start_buckets where ctid = any(array(
  select b.ctid from start_buckets b
   where b.filled_at < now() - make_interval(secs => greatest(86400,
           coalesce((select max(l.start_period) from queue_limits l where l.queue = b.queue), 0)))
   limit %(limit)s for update skip locked))
"""
