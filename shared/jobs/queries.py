"""Every statement that reads jobs, and how a viewer's rights become a condition. Executed sync or async."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from .states import Priority, Status

__all__ = [
    "BATCH_COUNTS",
    "EVENTS",
    "ID_SLACK",
    "QUEUE_FIGURES",
    "SCAN_ROWS",
    "JobFilter",
    "Listed",
    "Query",
    "Viewer",
    "get_batch",
    "get_job",
    "list_jobs",
    "listed",
]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks: members see their own, admins their organisation, super admins everything."""

    org_id: UUID
    member_id: UUID
    role: str

    def condition(self, alias: str = "") -> str:
        """A SQL condition over ``org_id`` and ``created_by`` of a table; its parameters come from ``parameters``."""
        a = f"{alias}." if alias else ""
        if self.role == "super_admin":
            return "true"
        if self.role == "admin":
            return f"{a}org_id = %(viewer_org)s"
        return f"{a}org_id = %(viewer_org)s and {a}created_by = %(viewer_member)s"

    def organisation(self, alias: str = "") -> str:
        """As ``condition``, for what a whole organisation shares (standards)."""
        a = f"{alias}." if alias else ""
        return "true" if self.role == "super_admin" else f"{a}org_id = %(viewer_org)s"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"viewer_org": self.org_id, "viewer_member": self.member_id}


@dataclass(frozen=True, slots=True)
class Query:
    """A statement with its parameters, for either kind of connection."""

    sql: str
    parameters: dict[str, Any]


_JOB = """id, org_id, created_by, type, queue, status, priority, attempt, max_retries, retry_count, stall_count,
  progress, step, event_seq, time_limit, created_at, run_at, started_at, finished_at, next_retry_at, cancelled_at,
  cancelled_by, batch_id, payload, metadata, error,
  array(select d.parent_id from job_dependencies d where d.child_id = jobs.id) as depends_on"""


def get_job(viewer: Viewer, job_id: UUID, *, with_result: bool = False) -> Query:
    """One job, or no row: another tenant's job does not exist."""
    result = ", result" if with_result else ""
    return Query(
        f"select {_JOB}{result} from jobs where id = %(id)s and {viewer.condition()}",
        {"id": job_id, **viewer.parameters},
    )


@dataclass(frozen=True, slots=True)
class JobFilter:
    statuses: Sequence[Status] = ()
    types: Sequence[str] = ()
    batch_id: UUID | None = None
    priority: Priority | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of jobs, newest first. ``before`` asks for the next page; None: there is none.

    A filter that few jobs of many meet ends a page early, empty even: it has looked at SCAN_ROWS and goes on from
    there at the next page.
    """

    rows: list[dict[str, Any]]
    before: UUID | None


def listed(rows: Sequence[dict[str, Any]], limit: int) -> Listed:
    """The page that the rows of ``list_jobs`` (asked for with the same ``limit``) are."""
    jobs = [row for row in rows if row["id"] is not None]
    if len(jobs) > limit:
        return Listed(jobs[:limit], jobs[limit - 1]["id"])
    return Listed(jobs, rows[0]["scanned_to"] if rows else None)


# How many index entries a page may cost, over all the ranges that it merges: about 10 ms.
SCAN_ROWS = 20_000
# An id begins with the millisecond in which it was made, which may be this much off from ``created_at``: the clock of
# the machine that made it, and what came between making and accepting.
ID_SLACK = timedelta(minutes=10)
_FIRST_ID = UUID(int=0)
_LAST_ID = UUID(int=(1 << 128) - 1)

# Newest first, out of ranges that an index has in order. Each range yields its first matches, and where it stopped
# before its end (``edge``); what lies below the highest edge is another page's. Ids come from the index alone where
# only status, type and priority are asked for, which it includes.
#
# No other plan is possible, whatever the statistics say: bounds are row comparisons with values that the planner
# cannot know (they come from a CTE), which it takes for a ninth of the table; how far to read is a subselect, which it
# takes for a tenth of that; and their order is that of one index. So reading it in order is always the cheapest.
_LIST = """
with recursive {ranges}, scanned as materialized (
  select m.ids, case when cardinality(m.ids) > %(limit)s::int then m.ids[cardinality(m.ids)] else e.id end as edge
    from ranges r
    cross join lateral (
      select array(select i.id from ({scan} limit {entries}) i where {matches} limit %(limit)s::int + 1) as ids offset 0
    ) m
    left join lateral (
      select i.id from ({scan} offset {entries} - 1 limit 1) i where cardinality(m.ids) <= %(limit)s::int
    ) e on true
), edge as materialized (
  select (select edge from scanned where edge is not null order by edge desc limit 1) as id
), page as materialized (
  select i.id from scanned s cross join unnest(s.ids) i (id) cross join edge e
   where e.id is null or i.id >= e.id order by i.id desc limit %(limit)s::int + 1
)
select e.id as scanned_to, job.*
  from edge e left join (
    select j.* from page p cross join lateral (
      select {job} from jobs where jobs.id = p.id and {visible} offset 0
    ) j
  ) job on true
 order by job.id desc nulls last
"""

# Of each kind of list: its ranges, and what one range reads, in the order of the index named.
_BOUNDS = "bounds as materialized (select %(first)s::uuid as first, %(before)s::uuid as before)"
_BY_STATUS = """, ranges as materialized (
  select s.status, b.first, b.before, {owner} as owner from bounds b cross join unnest(%(statuses)s::text[]) s (status)
)"""
# Organisations that have jobs, by a loose scan: one probe of jobs_org_idx each.
_BY_ORGANISATION = (
    _BOUNDS
    + """, orgs as (
  (select org_id from jobs order by org_id, status, id limit 1)
  union all
  select (select j.org_id from jobs j where j.org_id > o.org_id order by j.org_id, j.status, j.id limit 1)
    from orgs o where o.org_id is not null
), ranges as materialized (
  select s.status, b.first, b.before, o.org_id as owner
    from bounds b cross join orgs o cross join unnest(%(statuses)s::text[]) s (status) where o.org_id is not null
)"""
)
_SCAN = """select j.id, j.type, j.priority, {columns} from jobs j
            where {key} < {upper} and {key} >= {lower} {partial} order by {order}"""


def _scan(columns: str, *key: str, partial: str = "") -> str:
    """The entries of one range, newest first; ``key`` are the columns of the index ("0": only to make a row of it)."""
    values = {"status": "r.status", "id": "r.{bound}", "0": "0"}
    says = ", ".join(values.get(name, "r.owner") for name in key)
    names = [name if name == "0" else f"j.{name}" for name in key]
    return _SCAN.format(
        columns=columns,
        key=f"({', '.join(names)})",
        upper=f"({says.format(bound='before')})",
        lower=f"({says.format(bound='first')})",
        partial=partial,
        order=", ".join(f"{name} desc" for name in names if name != "0"),
    )


def list_jobs(viewer: Viewer, wanted: JobFilter, *, before: UUID | None, limit: int) -> Query:
    """Newest first; read the rows by ``listed``. ``before`` is where the page before ended.

    Costs at most SCAN_ROWS index entries and ``limit`` + 1 rows, whatever there is and whatever is asked for.
    """
    statuses = [s.value for s in wanted.statuses or tuple(Status)]
    parameters: dict[str, Any] = {
        "limit": limit,
        "statuses": statuses,
        "first": _id_from(wanted.created_after, -ID_SLACK, _FIRST_ID),
        "before": min(before or _LAST_ID, _id_from(wanted.created_before, ID_SLACK, _LAST_ID)),
        **viewer.parameters,
    }
    # What the scan must see to decide, and where that is not in the index, the row.
    columns, matches = ["true as every"], ["true"]
    if wanted.types:
        matches.append("i.type = any(%(types)s)")
        parameters["types"] = list(wanted.types)
    if wanted.priority is not None:
        matches.append("i.priority = %(priority)s")
        parameters["priority"] = int(wanted.priority)
    for name, operator, at in (
        ("created_after", ">=", wanted.created_after),
        ("created_before", "<", wanted.created_before),
    ):
        if at is not None:
            columns.append(f"j.created_at as {name}")
            matches.append(f"i.{name} {operator} %({name})s")
            parameters[name] = at
    own = viewer.role not in ("admin", "super_admin")
    by_status = _BOUNDS + _BY_STATUS
    entries = f"(select {SCAN_ROWS // len(statuses)})"
    if wanted.batch_id is not None or (viewer.role == "super_admin" and not wanted.statuses):
        columns += ["j.status", "j.org_id", "j.created_by"]
        matches += ["i.status = any(%(statuses)s)", viewer.condition("i")]
        entries = f"(select {SCAN_ROWS})"
    scanned = ", ".join(columns)
    if wanted.batch_id is not None:
        parameters["batch_id"] = wanted.batch_id
        ranges = _BOUNDS + ", ranges as materialized (select first, before, %(batch_id)s::uuid as owner from bounds)"
        scan = _scan(scanned, "batch_id", "id", partial="and j.batch_id is not null")
    elif viewer.role == "super_admin" and not wanted.statuses:
        ranges = _BOUNDS + ", ranges as materialized (select first, before from bounds)"
        scan = _scan(scanned, "id", "0")
    elif viewer.role == "super_admin":
        ranges = _BY_ORGANISATION
        entries = f"(select greatest(16, {SCAN_ROWS} / greatest(1, count(*))) from ranges)"
        scan = _scan(scanned, "org_id", "status", "id")
    elif own:
        ranges = by_status.format(owner="%(viewer_member)s::uuid")
        scan = _scan(scanned, "created_by", "status", "id", partial="and j.created_by is not null")
    else:
        ranges = by_status.format(owner="%(viewer_org)s::uuid")
        scan = _scan(scanned, "org_id", "status", "id")
    return Query(
        _LIST.format(
            ranges=ranges,
            scan=scan,
            entries=entries,
            matches=" and ".join(matches),
            job=_JOB,
            visible=viewer.condition("jobs"),
        ),
        parameters,
    )


def _id_from(at: datetime | None, slack: timedelta, otherwise: UUID) -> UUID:
    """The lowest id of that moment."""
    if at is None:
        return otherwise
    milliseconds = int(at.timestamp() * 1000) + int(slack.total_seconds() * 1000)
    return UUID(int=min(max(milliseconds, 0), (1 << 48) - 1) << 80)


EVENTS = """
select seq, at, kind, attempt, data from job_events
 where job_id = %(job_id)s and seq > %(after)s order by seq limit %(limit)s
"""


def get_batch(viewer: Viewer, batch_id: UUID) -> Query:
    return Query(
        f"select * from batches where id = %(id)s and {viewer.condition()}", {"id": batch_id, **viewer.parameters}
    )


# By status and type, with the mean progress of what has not ended.
BATCH_COUNTS = """
select type, status, count(*)::int as jobs, coalesce(sum(progress), 0)::int as progress
  from jobs where batch_id = %(batch_id)s group by type, status
"""

# As the scheduler last sampled them (``figures``).
QUEUE_FIGURES = """
select queue, due, later, processing,
       case when due > 0 then extract(epoch from now() - oldest_run_at) end as oldest_seconds
  from queue_figures
"""
