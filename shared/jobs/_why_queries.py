"""What ``why`` asks of Postgres: each of these costs a few index probes, however deep the backlog."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from ._sql.parts import DONE, QUEUED, RUNNING, WAITING
from .queries import Query, Viewer

__all__ = ["MOST_AHEAD", "SHOWN_JOBS", "ahead", "batch_of", "job", "key_holders", "last_event", "limits", "parents",
           "roots", "running", "worker", "workers"]  # fmt: skip

# Jobs ahead are counted to this and one more.
MOST_AHEAD = 1_000
# Other jobs named in an answer.
SHOWN_JOBS = 20


def _sees(viewer: Viewer | None, alias: str) -> str:
    return "true" if viewer is None else viewer.condition(alias)


def _parameters(viewer: Viewer | None, **more: Any) -> dict[str, Any]:
    return {**(viewer.parameters if viewer is not None else {}), **more}


def job(viewer: Viewer | None, job_id: UUID) -> Query:
    return Query(
        f"""
select id, org_id, created_by, type, queue, status, priority, hold, attempt, max_retries, retry_count, progress, step,
       event_seq, run_at, started_at, finished_at, next_retry_at, cancelled_at, cancelled_by, lease_until, worker_id,
       concurrency_key, concurrency_limit, error, now() as now
  from jobs where id = %(id)s and {_sees(viewer, "jobs")}
""",
        _parameters(viewer, id=job_id),
    )


def last_event(job_id: UUID) -> Query:
    return Query(
        "select kind, at, actor, data from job_events where job_id = %(id)s order by seq desc limit 1", {"id": job_id}
    )


def parents(viewer: Viewer | None, job_id: UUID) -> Query:
    """Those that have not ended, the first few, with how many there are."""
    return Query(
        f"""
select p.id, p.type, p.status, {_sees(viewer, "p")} as visible, count(*) over ()::int as pending
  from job_dependencies d join jobs p on p.id = d.parent_id
 where d.child_id = %(id)s and p.status not in {DONE}
 order by p.id limit {SHOWN_JOBS}
""",
        _parameters(viewer, id=job_id),
    )


def roots(viewer: Viewer | None, job_id: UUID) -> Query:
    """Of the jobs above a waiting one, the one that everything waits for: itself not waiting for another job.

    One that has not begun comes before one that runs. Looks at 1,000 jobs, 100 levels up.
    """
    return Query(
        f"""
with recursive above (id, depth) as (
  select parent_id, 1 from job_dependencies where child_id = %(id)s
  union
  select d.parent_id, a.depth + 1
    from above a join jobs j on j.id = a.id join job_dependencies d on d.child_id = a.id
   where j.status = {WAITING} and a.depth < 100
)
select j.id, j.type, j.status, {_sees(viewer, "j")} as visible, a.depth
  from (select id, depth from above limit 1000) a join jobs j on j.id = a.id
 where j.status not in {DONE}
   and (j.status <> {WAITING} or not exists (select from job_dependencies d where d.child_id = j.id))
 order by j.status = {RUNNING}, j.status = {WAITING}, j.id limit 1
""",
        _parameters(viewer, id=job_id),
    )


def batch_of(org_id: UUID, job_id: UUID) -> Query:
    """The batch whose end a completion job waits for."""
    return Query(
        """
select id, total, completed + failed + cancelled as ended from batches
 where org_id = %(org_id)s and completion_job_id = %(id)s order by org_id desc, id desc limit 1
""",
        {"org_id": org_id, "id": job_id},
    )


def limits(row: dict[str, Any]) -> Query:
    """The limits that may hold for a job, and the tokens of their start rates."""
    return Query(
        """
select l.scope, l.org_id, l.concurrency_key, l.paused_at, l.paused_by, l.pause_reason, l.max_running, l.start_limit,
       l.start_period, b.tokens, extract(epoch from now() - b.filled_at)::float8 as filled_ago,
       m.org_id as paused_by_org
  from queue_limits l
  left join start_buckets b on b.queue = l.queue and b.scope = l.scope
       and (l.scope = 'queue' or b.org_id = %(org_id)s)
       and (l.scope <> 'key' or b.concurrency_key = %(key)s)
  left join members m
    on m.id = case when l.paused_by ~ '^member:[0-9a-f-]{36}$' then substring(l.paused_by from 8)::uuid end
 where l.queue = %(queue)s and l.org_id in (%(org_id)s, '00000000-0000-0000-0000-000000000000')
   and (l.scope <> 'key' or l.concurrency_key in (%(key)s, ''))
""",
        {"queue": row["queue"], "org_id": row["org_id"], "key": row["concurrency_key"]},
    )


def running(row: dict[str, Any]) -> Query:
    return Query(
        f"""
select count(*)::int as queue, count(*) filter (where org_id = %(org_id)s)::int as organisation
  from jobs where queue = %(queue)s and status = {RUNNING}
""",
        {"queue": row["queue"], "org_id": row["org_id"]},
    )


def key_holders(viewer: Viewer | None, row: dict[str, Any]) -> Query:
    """Jobs of its concurrency key that run, the first few, with how many there are."""
    return Query(
        f"""
select j.id, j.type, j.status, {_sees(viewer, "j")} as visible, count(*) over ()::int as jobs
  from jobs j
 where j.queue = %(queue)s and j.org_id = %(org_id)s and j.concurrency_key = %(key)s
   and j.status = {RUNNING} and j.concurrency_key is not null
 order by j.started_at limit {SHOWN_JOBS}
""",
        _parameters(viewer, queue=row["queue"], org_id=row["org_id"], key=row["concurrency_key"]),
    )


def workers(queue: str, job_type: str) -> Query:
    """Workers of a queue that were heard of within their lease, and how many of them know the type.

    One that does not say what it knows counts as knowing.
    """
    return Query(
        """
select count(*) filter (where alive)::int as alive, coalesce(sum(concurrency) filter (where alive), 0)::int as slots,
       count(*) filter (where alive and (job_types = '{}' or %(type)s = any(job_types)))::int as knowing,
       extract(epoch from now() - max(seen_at))::float8 as seen_ago
  from (select *, seen_at > now() - make_interval(secs => lease_seconds) as alive
          from workers where queue = %(queue)s order by seen_at desc limit 10000) w
""",
        {"queue": queue, "type": job_type},
    )


def worker(worker_id: UUID | None) -> Query:
    return Query(
        """
select id, lease_seconds, extract(epoch from now() - seen_at)::float8 as seen_ago from workers where id = %(id)s
""",
        {"id": worker_id},
    )


# How many jobs the claim would take before this one, counted to MOST_AHEAD + 1.
#
# The claim's order: level (priority, lifted by age); turn (the organisation's jobs in flight plus the job's place among
# its organisation's); age. In each priority's range of jobs_claim_idx the jobs of a lower level come first (up to
# ``lower``), then those of the same level (up to ``upper``), so both are counted by walking the range to a bound:
# of the lower level all that there are, of the same level as many places as come before the job's turn.
# Organisations are visited one by one until the count is full. Bounds are row comparisons with values that the planner
# cannot know, so that no other plan than the ordered walk is possible, whatever the statistics say.
_RANGE = (
    """select j.run_at, j.id from jobs j
     where (j.queue, j.org_id, j.priority, j.run_at, j.id) > (me.queue, {org}, p.priority, {above}, {above_id})
       and (j.queue, j.org_id, j.priority, j.run_at, j.id) < (me.queue, {org}, p.priority, {below}, {below_id})
       and j.status = """
    + QUEUED
    + """ and j.hold = 0
     order by j.queue, j.org_id, j.priority, j.run_at, j.id"""
)
_FIRST = "'00000000-0000-0000-0000-000000000000'::uuid"
_LAST = "'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid"


def _range(org: str, above: str, below: str, above_id: str = _LAST, below_id: str = _LAST) -> str:
    return _RANGE.format(org=org, above=above, above_id=above_id, below=below, below_id=below_id)


_AHEAD = f"""
with recursive me as materialized (
  select %(queue)s::text as queue, %(org_id)s::uuid as org_id, %(run_at)s::timestamptz as run_at, %(id)s::uuid as id,
         %(level)s::int as level, %(now)s::timestamptz as now
), bound as materialized (
  select p.priority,
         case when p.priority < me.level then me.now when me.level = 0 then '-infinity'
              else me.now - make_interval(secs => (p.priority - me.level + 1) * %(age)s) end as lower,
         case when p.priority < me.level then me.now
              else me.now - make_interval(secs => (p.priority - me.level) * %(age)s) end as upper
    from me cross join (values (0::smallint), (1::smallint), (2::smallint)) p (priority)
), orgs as (
  (select org_id from jobs where queue = %(queue)s and status = {QUEUED} and hold = 0
    order by org_id, priority, run_at, id limit 1)
  union all
  select (select j.org_id from jobs j
           where j.queue = %(queue)s and j.status = {QUEUED} and j.hold = 0 and j.org_id > o.org_id
           order by j.org_id, j.priority, j.run_at, j.id limit 1)
    from orgs o where o.org_id is not null
), busy as materialized (
  select org_id, count(*) as jobs from jobs where queue = %(queue)s and status = {RUNNING} group by org_id
), mine as materialized (
  select 1 + coalesce((select jobs from busy where busy.org_id = %(org_id)s), 0)
         + (select count(*) from (select 1 from me cross join bound p cross join lateral (
              {_range("me.org_id", "'-infinity'", "p.lower", _FIRST)} limit %(most)s) x limit %(most)s) lower)
         + (select count(*) from (select 1 from me cross join bound p cross join lateral (
              {
    _range(
        "me.org_id",
        "p.lower",
        "least(p.upper, me.run_at)",
        _LAST,
        f"case when p.upper < me.run_at then {_LAST} else me.id end",
    )
}
              limit %(most)s) x limit %(most)s) same) as turn
)
select count(*)::int as jobs from (
  select 1 from me cross join mine cross join orgs o left join busy b on b.org_id = o.org_id
   cross join lateral (
     select count(*) as jobs from (select 1 from bound p cross join lateral (
       {_range("o.org_id", "'-infinity'", "p.lower", _FIRST)} limit %(most)s) x limit %(most)s) l
   ) lower
   cross join lateral (
     select 1 from generate_series(1, lower.jobs)
     union all
     select 1 from (
       select e.run_at, e.id,
              coalesce(b.jobs, 0) + lower.jobs + row_number() over (order by e.run_at, e.id) as turn
         from bound p cross join lateral (
           {_range("o.org_id", "p.lower", "p.upper")}
           limit greatest(0, least(%(most)s, mine.turn - coalesce(b.jobs, 0) - lower.jobs))
         ) e
     ) ranked
      where (ranked.turn, ranked.run_at, ranked.id) < (mine.turn, me.run_at, me.id)
   ) x
   where o.org_id is not null
     and not exists (select from queue_limits l where l.queue = %(queue)s and l.scope = 'organisation'
                        and l.org_id = o.org_id and l.paused_at is not null)
   limit %(most)s
) counted
"""


def ahead(row: dict[str, Any], *, level: int, now: datetime, age_seconds: float) -> Query:
    return Query(
        _AHEAD,
        {
            "queue": row["queue"],
            "org_id": row["org_id"],
            "run_at": row["run_at"],
            "id": row["id"],
            "level": level,
            "now": now,
            "age": age_seconds,
            "most": MOST_AHEAD + 1,
        },
    )
