"""How many jobs there are and how fast they go: a caller's own, and the queues'.

A caller's jobs are counted as they are now, to COUNTED_ROWS a status; what goes beyond, and the queues' depths, come
from what the scheduler last counted (``sample``): an exact count costs 0.3–0.6 s a million rows, so it is made now and
then, by one process, and never by a request (docs/decisions/0008-figures.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shared.contracts import JOB_TYPES, Registry

from ._sql.parts import QUEUED, RUNNING, WAITING
from ._steps import AsyncConnection, Connection, Rows, Steps, run, run_async
from .queries import Query, Viewer
from .states import Status

__all__ = ["COUNTED_ROWS", "JobStats", "QueueFigures", "job_stats", "job_stats_async", "queue_figures",
           "queue_figures_async", "sample"]  # fmt: skip

# Of one status, counted exactly up to this many.
COUNTED_ROWS = 10_000
# A sample that took s seconds is followed by the next not before SHARE * s: a twentieth of one connection at most.
_SHARE = 20
_QUICK_SECONDS = 0.1
# Speed is that of the last minutes, and of so many jobs at most.
_MINUTES = 5
_TIMED_JOBS = 2_000


@dataclass(frozen=True, slots=True)
class JobStats:
    """A caller's jobs. ``exact`` is False where there are too many to count for one answer: then the numbers are those
    of ``as_of``, or where nobody has counted yet (None), lower bounds."""

    by_status: dict[Status, int]
    by_type: dict[str, dict[Status, int]]
    exact: bool = True
    as_of: datetime | None = None

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A queue: depths as of ``as_of`` (None: not counted yet), pause and workers as they are now. Seconds."""

    queue: str
    as_of: datetime | None = None
    waiting: int = 0
    due: int = 0
    later: int = 0
    held: int = 0
    processing: int = 0
    failed: int = 0
    oldest_seconds: float | None = None
    per_minute: float = 0.0
    wait_p50: float | None = None
    wait_p95: float | None = None
    run_p50: float | None = None
    run_p95: float | None = None
    paused_at: datetime | None = None
    pause_reason: str | None = None
    max_running: int | None = None
    start_limit: int | None = None
    start_period: float | None = None
    workers: int = 0
    slots: int = 0
    job_types: tuple[str, ...] = field(default_factory=tuple)


# --- a caller's jobs ---------------------------------------------------------------------------

# Of each status the first COUNTED_ROWS entries of the caller's index, which holds the type. Written as the ranges of
# ``queries.list_jobs``, and for the same reason.
_COUNT = f"""
with ranges as materialized (
  select %(owner)s::uuid as owner, s.status, '00000000-0000-0000-0000-000000000000'::uuid as first,
         'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid as last
    from unnest(%(statuses)s::text[]) s (status)
)
select r.status, c.type, c.jobs
  from ranges r cross join lateral (
    select type, count(*)::int as jobs from (
      select j.type from jobs j
       where (j.{{column}}, j.status, j.id) >= (r.owner, r.status, r.first)
         and (j.{{column}}, j.status, j.id) <= (r.owner, r.status, r.last) {{partial}}
       order by j.{{column}} desc, j.status desc, j.id desc limit (select {COUNTED_ROWS})
    ) entry group by type
  ) c
"""
_COUNT_MEMBER = _COUNT.format(column="created_by", partial="and j.created_by is not null")
_COUNT_ORGANISATION = _COUNT.format(column="org_id", partial="")

_SAMPLED = """
select f.status, f.type, f.jobs, s.as_of
  from (select max(as_of) as as_of from queue_figures) s
  left join (select status, type, sum(jobs)::int as jobs from job_figures where {condition} group by status, type) f
    on true
"""


def _stats(rows: Rows, types: Sequence[str] | None, *, exact: bool = True, as_of: datetime | None = None) -> JobStats:
    by_status = dict.fromkeys(Status, 0)
    by_type: dict[str, dict[Status, int]] = {}
    for row in rows:
        if not row["jobs"] or (types is not None and row["type"] not in types):
            continue
        status = Status(row["status"])
        by_status[status] += row["jobs"]
        by_type.setdefault(row["type"], dict.fromkeys(Status, 0))[status] += row["jobs"]
    return JobStats(by_status, dict(sorted(by_type.items())), exact, as_of)


def _job_stats(viewer: Viewer, types: Sequence[str] | None) -> Steps[JobStats]:
    if viewer.role == "super_admin":
        sampled = yield Query(_SAMPLED.format(condition="true"), {})
        return _stats(sampled, types, exact=False, as_of=sampled[0]["as_of"])
    organisation = viewer.role == "admin"
    counted = yield Query(
        _COUNT_ORGANISATION if organisation else _COUNT_MEMBER,
        {"owner": viewer.org_id if organisation else viewer.member_id, "statuses": [s.value for s in Status]},
    )
    now = _stats(counted, None).by_status
    beyond = {s for s, jobs in now.items() if jobs >= COUNTED_ROWS}
    if not beyond or not organisation:  # members are not counted one by one
        return _stats(counted, types, exact=not beyond)
    sampled = yield Query(_SAMPLED.format(condition="org_id = %(viewer_org)s"), viewer.parameters)
    then = _stats(sampled, None).by_status
    # A sample from before these jobs came is worse than the lower bound.
    known = {s for s in beyond if then[s] >= now[s]}
    rows = [r for r in counted if Status(r["status"]) not in known]
    rows += [r for r in sampled if r["jobs"] and Status(r["status"]) in known]
    return _stats(rows, types, exact=False, as_of=sampled[0]["as_of"] if known == beyond else None)


def job_stats(conn: Connection, viewer: Viewer, types: Sequence[str] | None = None) -> JobStats:
    """The viewer's jobs by status and type, of these types only. A super admin's are all organisations', as sampled."""
    return run(conn, _job_stats(viewer, types))


async def job_stats_async(conn: AsyncConnection, viewer: Viewer, types: Sequence[str] | None = None) -> JobStats:
    """As ``job_stats``, on an event loop."""
    return await run_async(conn, _job_stats(viewer, types))


# --- queues ------------------------------------------------------------------------------------

_QUEUES = f"""
select q.queue, f.as_of, coalesce(f.waiting, 0) as waiting, coalesce(f.due, 0) as due, coalesce(f.later, 0) as later,
       coalesce(f.held, 0) as held, r.jobs as processing, coalesce(f.failed, 0) as failed,
       case when f.due > 0 then extract(epoch from now() - f.oldest_run_at)::float8 end as oldest_seconds,
       coalesce(f.per_minute, 0) as per_minute, f.wait_p50, f.wait_p95, f.run_p50, f.run_p95,
       l.paused_at, l.pause_reason, l.max_running, l.start_limit, l.start_period, w.workers, w.slots, w.job_types
  from (select queue from unnest(%(queues)s::text[]) n (queue) union select queue from queue_figures) q
  left join queue_figures f on f.queue = q.queue
  left join queue_limits l on l.queue = q.queue and l.scope = 'queue'
  cross join lateral (
    select count(*)::int as jobs from jobs j where j.queue = q.queue and j.status = {RUNNING}
  ) r
  cross join lateral (
    select count(*)::int as workers, coalesce(sum(concurrency), 0)::int as slots,
           array(select distinct t from workers v cross join unnest(v.job_types) t
                  where v.queue = q.queue and v.seen_at > now() - make_interval(secs => v.lease_seconds) order by t
           ) as job_types
      from workers v where v.queue = q.queue and v.seen_at > now() - make_interval(secs => v.lease_seconds)
  ) w
 order by q.queue
"""


def _queue_figures(queues: Sequence[str]) -> Steps[list[QueueFigures]]:
    rows = yield Query(_QUEUES, {"queues": list(queues)})
    return [QueueFigures(**{**row, "job_types": tuple(row["job_types"])}) for row in rows]


def queue_figures(conn: Connection, queues: Sequence[str]) -> list[QueueFigures]:
    """The figures of these queues, and of others that have been sampled, by name."""
    return run(conn, _queue_figures(queues))


async def queue_figures_async(conn: AsyncConnection, queues: Sequence[str]) -> list[QueueFigures]:
    """As ``queue_figures``, on an event loop."""
    return await run_async(conn, _queue_figures(queues))


# --- counting ----------------------------------------------------------------------------------

_LOCK = "select pg_try_advisory_xact_lock(hashtextextended('gradeline.figures', 0)) as mine"
_DUE = f"""
select coalesce(bool_and(seconds <= {_QUICK_SECONDS} or as_of + make_interval(secs => {_SHARE} * seconds) <= now()),
                true) as due from queue_figures
"""
# Every count is of one partial index, and index-only where vacuum has been.
_SAMPLE_QUEUES = f"""
with open as (
  select queue, count(*) filter (where run_at <= now()) as due, count(*) filter (where run_at > now()) as later,
         min(run_at) filter (where run_at <= now()) as oldest
    from jobs where status = {QUEUED} and hold = 0 group by queue
), held as (
  select queue, count(*) as jobs from jobs where status = {QUEUED} and hold > 0 group by queue
), running as (
  select queue, count(*) as jobs from jobs where status = {RUNNING} group by queue
), name as (
  select unnest(%(queues)s::text[]) as queue
  union select queue from open union select queue from held union select queue from running
  union select queue from queue_figures
)
insert into queue_figures as f (queue, as_of, seconds, waiting, due, later, held, processing, failed, oldest_run_at,
                                per_minute, wait_p50, wait_p95, run_p50, run_p95)
select n.queue, now(), 0, 0, coalesce(o.due, 0), coalesce(o.later, 0), coalesce(h.jobs, 0), coalesce(r.jobs, 0), 0,
       o.oldest, p.jobs::float8 / {_MINUTES}, t.wait[1], t.wait[2], t.run[1], t.run[2]
  from name n left join open o using (queue) left join held h using (queue) left join running r using (queue)
  cross join lateral (
    select count(*) as jobs from jobs j
     where j.queue = n.queue and j.finished_at > now() - make_interval(mins => {_MINUTES})
  ) p
  cross join lateral (
    select percentile_cont(array[0.5, 0.95]) within group (order by greatest(0, wait)) as wait,
           percentile_cont(array[0.5, 0.95]) within group (order by run) as run
      from (
        select extract(epoch from j.started_at - j.run_at)::float8 as wait,
               extract(epoch from j.finished_at - j.started_at)::float8 as run
          from jobs j
         where j.queue = n.queue and j.finished_at > now() - make_interval(mins => {_MINUTES})
         order by j.finished_at desc limit {_TIMED_JOBS}
      ) timed where run is not null
  ) t
on conflict (queue) do update
   set (as_of, due, later, held, processing, oldest_run_at, per_minute, wait_p50, wait_p95, run_p50, run_p95)
     = (excluded.as_of, excluded.due, excluded.later, excluded.held, excluded.processing, excluded.oldest_run_at,
        excluded.per_minute, excluded.wait_p50, excluded.wait_p95, excluded.run_p50, excluded.run_p95)
"""
# By organisation, type and status, out of jobs_org_idx alone; only what changed is written.
_SAMPLE_JOBS = """
with counted as materialized (
  select org_id, type, status, count(*)::int as jobs from jobs group by org_id, type, status
), gone as (
  delete from job_figures f
   where not exists (select from counted c where (c.org_id, c.type, c.status) = (f.org_id, f.type, f.status))
)
insert into job_figures as f (org_id, type, status, jobs) select org_id, type, status, jobs from counted
on conflict (org_id, type, status) do update set jobs = excluded.jobs where f.jobs <> excluded.jobs
"""
# Waiting and failed have no index by queue: they follow from the counts by type.
_SAMPLE_ENDS = f"""
update queue_figures q
   set waiting = f.waiting, failed = f.failed,
       seconds = extract(epoch from clock_timestamp() - now())
  from (
    select n.queue, coalesce(sum(j.jobs) filter (where j.status = {WAITING}), 0) as waiting,
           coalesce(sum(j.jobs) filter (where j.status = '{Status.FAILED.value}'), 0) as failed
      from queue_figures n
      left join unnest(%(types)s::text[], %(type_queues)s::text[]) t (type, queue) on t.queue = n.queue
      left join job_figures j on j.type = t.type
     group by n.queue
  ) f where f.queue = q.queue
"""


def sample(conn: Connection, registry: Registry = JOB_TYPES) -> bool:
    """Count, if it is time and nobody else does. True when counted.

    Costs an index-only pass over all jobs and one over the queued ones, without locks that anybody waits for.
    """
    with conn.transaction():
        if not conn.execute(_LOCK).fetchall()[0]["mine"] or not conn.execute(_DUE).fetchall()[0]["due"]:
            return False
        conn.execute(_SAMPLE_QUEUES, {"queues": registry.queues()})
        conn.execute(_SAMPLE_JOBS)
        types = registry.all()
        conn.execute(_SAMPLE_ENDS, {"types": [t.name for t in types], "type_queues": [t.queue for t in types]})
    return True
