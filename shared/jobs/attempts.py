"""The history of a job's attempts, out of its events: who tried, for how long, how it ended and what it said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from ._steps import AsyncConnection, Connection, Steps, run, run_async
from .queries import Query, Viewer
from .states import EventKind

__all__ = ["LOG_LINES", "Attempt", "AttemptPage", "LogLine", "attempts", "attempts_async"]

# Of one attempt, the last lines; all of them are among the job's events.
LOG_LINES = 100
# Events of one attempt that are looked at for them, newest first.
_SEEN_EVENTS = 2_000
# An attempt's end is followed by few events before the next begins.
_LAST_EVENTS = 50
_ENDS = (
    EventKind.COMPLETED,
    EventKind.FAILED,
    EventKind.RETRYING,
    EventKind.SNOOZED,
    EventKind.RELEASED,
    EventKind.STALLED,
    EventKind.CRASHED,
    EventKind.CANCELLED,
)


@dataclass(frozen=True, slots=True)
class LogLine:
    at: datetime
    message: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. ``outcome`` None: it runs. ``host`` and ``pid`` are there while the worker is.

    ``traceback`` (file:line function) and ``exception`` are None for members. ``log`` is oldest first;
    ``log_truncated``: there is more.
    """

    number: int
    started_at: datetime
    ended_at: datetime | None
    seconds: float
    worker_id: str | None
    host: str | None
    pid: int | None
    outcome: EventKind | None
    error: Mapping[str, Any] | None
    exception: str | None
    traceback: tuple[str, ...] | None
    percent: int | None
    step: str | None
    log: tuple[LogLine, ...] = field(default_factory=tuple)
    log_truncated: bool = False


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """Newest first. ``before`` asks for the next page; None: there is none."""

    attempts: tuple[Attempt, ...]
    before: int | None


# Events of a job come in the order of its attempts, and their numbers without a gap, so an attempt's first event is
# found by halving: about 20 probes of the primary key, however many lines the attempts before it have written.
# Newest first: of each attempt the end (the first event among its last that ends one), log lines and last progress.
_ATTEMPTS = f"""
with recursive job as materialized (
  select id, attempt, event_seq from jobs where id = %(id)s and {{visible}}
), wanted as materialized (
  select n.attempt from job, generate_series(
    greatest(1, least(job.attempt, %(before)s::int - 1) - %(limit)s::int), least(job.attempt, %(before)s::int - 1)
  ) n (attempt)
), search (attempt, low, high) as (
  select n.attempt, 1, job.event_seq + 1
    from job, (select attempt from wanted union select attempt + 1 from wanted) n
  union all
  select s.attempt, case when m.before then s.low + (s.high - s.low) / 2 + 1 else s.low end,
         case when m.before then s.high else s.low + (s.high - s.low) / 2 end
    from search s cross join lateral (
      -- A number that is not there any more counts as its next.
      select coalesce((select e.attempt from job_events e
                        where e.job_id = %(id)s and e.seq >= s.low + (s.high - s.low) / 2
                        order by e.seq limit 1) < s.attempt, false) as before
    ) m
   where s.low < s.high
), first as materialized (
  select attempt, low as seq from search where low = high
)
select a.attempt, began.at as started_at, began.actor, ended.at as ended_at, ended.kind, ended.data,
       extract(epoch from coalesce(ended.at, now()) - began.at)::float8 as seconds,
       worker.host, worker.pid, said.lines, said.progress, said.seen, now() as now
  from wanted a
  join first f on f.attempt = a.attempt join first n on n.attempt = a.attempt + 1
  cross join lateral (
    select e.at, e.actor, e.seq from job_events e
     where e.job_id = %(id)s and e.seq >= f.seq and e.seq < n.seq and e.kind = '{EventKind.STARTED.value}'
     order by e.seq limit 1
  ) began
  left join lateral (
    select l.at, l.kind, l.data from (
      select e.seq, e.at, e.kind, e.data from job_events e
       where e.job_id = %(id)s and e.seq > began.seq and e.seq < n.seq order by e.seq desc limit {_LAST_EVENTS}
    ) l where l.kind = any(%(ends)s) order by l.seq limit 1
  ) ended on true
  left join workers worker
    on worker.id = case when began.actor ~ '^worker:[0-9a-f-]{{{{36}}}}$' then substring(began.actor from 8)::uuid end
  cross join lateral (
    select count(*)::int as seen,
           (array_agg(l.data order by l.seq desc) filter (where l.kind = '{EventKind.PROGRESS.value}'))[1] as progress,
           (array_agg(jsonb_build_object('at', l.at, 'data', l.data) order by l.seq desc)
              filter (where l.kind = '{EventKind.LOG.value}'))[:{LOG_LINES + 1}] as lines
      from (
        select e.seq, e.at, e.kind, e.data from job_events e
         where e.job_id = %(id)s and e.seq > began.seq and e.seq < n.seq order by e.seq desc limit {_SEEN_EVENTS}
      ) l
  ) said
 order by a.attempt desc
"""


def _attempts(job_id: UUID, viewer: Viewer | None, before: int | None, limit: int) -> Steps[AttemptPage]:
    rows = yield Query(
        _ATTEMPTS.format(visible="true" if viewer is None else viewer.condition()),
        {
            "id": job_id,
            "before": (1 << 31) - 1 if before is None else before,
            "limit": limit,
            "ends": [k.value for k in _ENDS],
            **(viewer.parameters if viewer is not None else {}),
        },
    )
    inside = viewer is None or viewer.role in ("admin", "super_admin")
    shown = tuple(_attempt(row, inside) for row in rows[:limit])
    return AttemptPage(shown, shown[-1].number if len(rows) > limit else None)


def _attempt(row: Mapping[str, Any], inside: bool) -> Attempt:
    error: Mapping[str, Any] | None = (row["data"] or {}).get("error")
    details = (error or {}).get("details") or {}
    lines = row["lines"] or []
    progress = row["progress"] or {}
    return Attempt(
        number=row["attempt"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        seconds=round(row["seconds"], 3),
        worker_id=row["actor"].partition(":")[2] or None,
        host=row["host"],
        pid=row["pid"],
        outcome=None if row["kind"] is None else EventKind(row["kind"]),
        error=error,
        exception=details.get("exception") if inside else None,
        traceback=tuple(details["traceback"]) if inside and details.get("traceback") else None,
        percent=progress.get("percent"),
        step=progress.get("step"),
        log=tuple(_line(line) for line in reversed(lines[:LOG_LINES])),
        log_truncated=len(lines) > LOG_LINES or row["seen"] >= _SEEN_EVENTS,
    )


def _line(line: Mapping[str, Any]) -> LogLine:
    data = dict(line["data"])
    return LogLine(datetime.fromisoformat(line["at"]), str(data.pop("message", "")), data)


def attempts(
    conn: Connection, job_id: UUID, viewer: Viewer | None = None, *, before: int | None = None, limit: int = 20
) -> AttemptPage:
    """The attempts of a job that the viewer sees, newest first; of any job without a viewer.

    ``before`` is where the page before ended. Costs some probes and at most 2,000 events an attempt.
    """
    return run(conn, _attempts(job_id, viewer, before, limit))


async def attempts_async(
    conn: AsyncConnection, job_id: UUID, viewer: Viewer | None = None, *, before: int | None = None, limit: int = 20
) -> AttemptPage:
    """As ``attempts``, on an event loop."""
    return await run_async(conn, _attempts(job_id, viewer, before, limit))
