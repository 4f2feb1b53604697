"""Accepting jobs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..states import TERMINAL, EventKind
from .parts import QUEUED, WAITING, among

__all__ = [
    "ADOPT",
    "BEHIND_BATCHES",
    "COLUMNS",
    "LOCK_CIRCLES",
    "LOCK_UNIQUE",
    "SUBMIT",
    "SUBMIT_IN_BATCH",
    "UNIQUE",
    "submit_one",
]

# The columns that a submit fills, and their types, in the order of the parameters.
COLUMNS = {
    "id": "uuid",
    "org_id": "uuid",
    "created_by": "uuid",
    "type": "text",
    "queue": "text",
    "priority": "smallint",
    "max_retries": "int",
    "time_limit": "float8",
    "run_at": "timestamptz",
    "batch_id": "uuid",
    "payload": "jsonb",
    "metadata": "jsonb",
    "webhook_url": "text",
    "notify_email": "text",
    "pending_parents": "int",
    "has_children": "boolean",
    "concurrency_key": "text",
    "concurrency_limit": "int",
    "unique_key": "text",
}
# Columns that are left to their defaults, where a job says nothing of them: fewer parameters, at less cost.
_OPTIONAL = (
    "created_by",
    "batch_id",
    "metadata",
    "webhook_url",
    "notify_email",
    "pending_parents",
    "has_children",
    "concurrency_key",
    "concurrency_limit",
    "unique_key",
)


def _insert(names: Sequence[str], source: str, where: str = "", edges: str = "") -> str:
    columns = ", ".join(names)
    values = ", ".join("greatest(coalesce(run_at, now()), now())" if n == "run_at" else n for n in names)
    status = f"case when pending_parents > 0 then {WAITING} else {QUEUED} end" if "pending_parents" in names else QUEUED
    return f"""
with job as (
  insert into jobs ({columns}, status)
  select {values}, {status} from {source} as t ({columns}){where}
  returning id, org_id, created_by, type, queue, status, priority, run_at, created_at
), event as (
  insert into job_events (job_id, seq, org_id, kind, actor)
  select id, 1, org_id, '{EventKind.ACCEPTED.value}', coalesce('member:' || created_by, 'system') from job
){edges}
select id, type, queue, status, priority, run_at, created_at from job
"""


_ARRAYS = f"unnest({', '.join(f'%({n})s::{t}[]' for n, t in COLUMNS.items())})"
_EDGES = """
, edge as (
  insert into job_dependencies (child_id, parent_id, on_failure)
  select * from unnest(%(child_ids)s::uuid[], %(parent_ids)s::uuid[], %(on_failure)s::text[]){where}
)"""

# Accept jobs: rows, first events and dependencies in one statement. Arrays run in parallel, one entry a job.
SUBMIT = _insert(tuple(COLUMNS), _ARRAYS, edges=_EDGES.format(where=""))

# The same for jobs of which some are in batches: nothing is written unless all of these are their organisations' own.
# Each is looked up by its key, whatever the planner thinks of arrays.
SUBMIT_IN_BATCH = _insert(
    tuple(COLUMNS),
    _ARRAYS,
    where="""
   where not exists (
     select from unnest(%(own_batches)s::uuid[], %(own_orgs)s::uuid[]) as own (batch_id, org_id)
      where own.org_id is distinct from (select b.org_id from batches b where b.id = own.batch_id))""",
    edges=_EDGES.format(where=" where exists (select from job)"),
)


@functools.cache
def _one(left_out: frozenset[str]) -> str:
    names = [n for n in COLUMNS if n not in left_out]
    where = (
        "\n   where t.org_id = (select b.org_id from batches b where b.id = t.batch_id)" if "batch_id" in names else ""
    )
    return _insert(names, f"(values ({', '.join(f'%({n})s::{COLUMNS[n]}' for n in names)}))", where)


def submit_one(row: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Accept one job that waits for none: the same without the arrays, at half the cost. No row: its batch is unknown.

    A column that has its default is left out; a service's jobs differ in few ways, so few statements come of it.
    """
    return _one(frozenset(n for n in _OPTIONAL if row[n] == defaults[n]))


# Mark jobs accepted earlier as parents, and say what has become of them. The row lock makes an ending parent and a
# new child wait for each other: see FREE.
ADOPT = """
with parent as (
  select id from jobs where id = any(%(ids)s) and org_id = any(%(org_ids)s) order by id for update
)
update jobs j set has_children = true from parent p where j.id = p.id returning j.id, j.org_id, j.status
"""

# Submits of one unique key take turns, in the order of the hashes so that two with several keys cannot deadlock.
LOCK_UNIQUE = """
select pg_advisory_xact_lock(h) from (
  select distinct hashtextextended('gradeline.unique:' || org_id || ':' || key, 0) as h
    from unnest(%(org_ids)s::uuid[], %(keys)s::text[]) as t (org_id, key) order by 1
) locks
"""

# Submits that might close a circle through batches take turns, so that each sees what the one before has accepted.
LOCK_CIRCLES = """
select pg_advisory_xact_lock(h) from (
  select distinct hashtextextended('gradeline.circles:' || org_id, 0) as h
    from unnest(%(org_ids)s::uuid[]) as t (org_id) order by 1
) locks
"""

# Which of these jobs wait, over however many others, for one of these batches to finish. What waits for a batch is its
# completion job; for a job, its children, and the completion job of its own batch.
BEHIND_BATCHES = f"""
with recursive behind (batch_id, id) as (
  select b.id, b.completion_job_id from batches b
   where b.id = any(%(batch_ids)s) and b.completion_job_id is not null and b.finished_at is null
  union
  select w.batch_id, n.id
    from behind w join jobs j on j.id = w.id and j.status = {WAITING}
   cross join lateral (
     select d.child_id as id from job_dependencies d where d.parent_id = j.id
     union all
     select b.completion_job_id from batches b
      where b.id = j.batch_id and b.completion_job_id is not null and b.finished_at is null
   ) n
)
select batch_id, id from behind where id = any(%(ids)s)
"""

# The newest job that has this key, within its scope of states and time; null when there is none.
UNIQUE = f"""
select j.id, j.type, j.queue, j.status, j.priority, j.run_at, j.created_at
  from jobs j
 where j.org_id = %(org_id)s and j.unique_key = %(key)s
   and (j.status = any(%(statuses)s))
   and (%(period)s::float8 is null or j.created_at > now() - make_interval(secs => %(period)s))
 order by j.status in {among(TERMINAL)}, j.id desc limit 1
"""
