"""Why a job is where it is: one sentence that a teacher understands, and a stable code.

The checks come in the order of what really blocks: a job whose queue is paused is not told how many are ahead of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from shared.contracts import JOB_TYPES, UnknownJobType
from shared.ids import IdKind, encode

from . import _why_queries as ask
from ._steps import AsyncConnection, Connection, Rows, Steps, run, run_async
from .queries import Viewer
from .states import EventKind, Hold, Priority, Status
from .store import AGE_SECONDS
from .views import error_json

__all__ = ["Why", "WhyCode", "why", "why_async"]

# The scheduler looks for lost leases this often (settings.rescue_seconds, by default).
_RESCUE_SECONDS = 5.0
_NOBODY = UUID(int=0)


class WhyCode(StrEnum):
    """What blocks a job, or what became of it."""

    PARENTS = "waiting.parents"
    BATCH = "waiting.batch"
    DUE_LATER = "due.later"
    RETRYING = "due.retry"
    SNOOZED = "due.snoozed"
    PAUSED_QUEUE = "paused.queue"
    PAUSED_ORGANISATION = "paused.organisation"
    PAUSED_KEY = "paused.key"
    NO_WORKER = "worker.none"
    NO_WORKER_FOR_TYPE = "worker.none_for_type"
    LIMIT_QUEUE = "limit.queue"
    LIMIT_ORGANISATION = "limit.organisation"
    LIMIT_KEY = "limit.key"
    RATE_QUEUE = "rate.queue"
    RATE_ORGANISATION = "rate.organisation"
    RATE_KEY = "rate.key"
    KEY_TAKEN = "held.key"
    ALONE = "held.alone"
    AHEAD = "queue.ahead"
    NEXT = "queue.next"
    PROCESSING = "processing"
    WORKER_LOST = "processing.worker_lost"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Why:
    """``details`` are what the sentence says as data: public ids of jobs that the viewer may see, times, counts."""

    code: WhyCode
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)


def why(conn: Connection, job_id: UUID, viewer: Viewer | None = None) -> Why | None:
    """Why the job is where it is; None when the viewer sees no such job (without a viewer, everything is seen).

    Some index probes, however deep the backlog. Never another organisation's ids or names.
    """
    return run(conn, _why(job_id, viewer))


async def why_async(conn: AsyncConnection, job_id: UUID, viewer: Viewer | None = None) -> Why | None:
    """As ``why``, on an event loop."""
    return await run_async(conn, _why(job_id, viewer))


def _why(job_id: UUID, viewer: Viewer | None) -> Steps[Why | None]:
    rows = yield ask.job(viewer, job_id)
    if not rows:
        return None
    row = rows[0]
    match Status(row["status"]):
        case Status.WAITING:
            return (yield from _waiting(row, viewer))
        case Status.QUEUED:
            return (yield from _queued(row, viewer))
        case Status.PROCESSING:
            return (yield from _processing(row))
        case Status.COMPLETED:
            at = row["finished_at"]
            return Why(WhyCode.COMPLETED, f"It is done since {_clock(at)}.", {"finished_at": at})
        case Status.FAILED:
            return _failed(row)
        case Status.CANCELLED:
            return (yield from _cancelled(row, viewer))


# --- not begun ---------------------------------------------------------------------------------


def _waiting(row: dict[str, Any], viewer: Viewer | None) -> Steps[Why]:
    parents = yield ask.parents(viewer, row["id"])
    if not parents:
        batches = yield ask.batch_of(row["org_id"], row["id"])
        if not batches:
            return Why(WhyCode.BATCH, "It waits for the other jobs of its batch to end.")
        batch = batches[0]
        return Why(
            WhyCode.BATCH,
            f"It runs when its batch has ended: {batch['ended']} of {_jobs(batch['total'])} have.",
            {"batch_id": encode(IdKind.BATCH, batch["id"]), "total": batch["total"], "ended": batch["ended"]},
        )
    pending = parents[0]["pending"]
    details = {"pending": pending, "parents": _seen(parents)}
    named = ", ".join(f"{_title(p['type'])} ({_STATE[Status(p['status'])]})" for p in parents[:3] if p["visible"])
    sentence = f"It waits for {_jobs(pending, other=True)} to finish first{': ' + named if named else ''}."
    roots = yield ask.roots(viewer, row["id"])
    if roots:
        root = roots[0]
        cause = (yield from _why(root["id"], viewer)) if root["visible"] else None
        if cause is None:
            sentence += " What holds that up is a colleague's job."
        else:
            held_up = {**_seen(roots)[0], "why": cause.code, "sentence": cause.sentence}
            details["held_up_by"] = held_up
            sentence += f" What holds that up ({_title(root['type'])}): {_lower(cause.sentence)}"
    return Why(WhyCode.PARENTS, sentence, details)


def _queued(row: dict[str, Any], viewer: Viewer | None) -> Steps[Why]:
    if row["run_at"] > row["now"]:
        return _later(row)
    limits = _Limits(row, (yield ask.limits(row)), viewer)
    if paused := limits.paused():
        return paused
    workers = (yield ask.workers(row["queue"], row["type"]))[0]
    if not workers["knowing"]:
        return _no_worker(row, workers)
    jobs = (yield ask.running(row))[0]
    holders: Rows = []
    if row["concurrency_key"] is not None:
        holders = yield ask.key_holders(viewer, row)
    if reached := limits.reached(jobs["queue"], jobs["organisation"], holders):
        return reached
    if row["hold"] == Hold.ALONE:
        return Why(
            WhyCode.ALONE,
            "Twice the program doing this ended in the middle of it. It runs next in a process that does nothing else "
            "meanwhile, as soon as one is free.",
            {"workers": workers["alive"]},
        )
    places = {"workers": workers["alive"], "slots": workers["slots"], "running": jobs["queue"]}
    if row["hold"] == Hold.KEY:
        return Why(
            WhyCode.NEXT, "What it had to wait for has ended; it is put back in line within a few seconds.", places
        )
    age = (row["now"] - row["run_at"]).total_seconds()
    level = max(0, row["priority"] - math.floor(age / AGE_SECONDS))
    ahead = (yield ask.ahead(row, level=level, now=row["now"], age_seconds=AGE_SECONDS))[0]["jobs"]
    at_work = f"{_count(workers['alive'], 'worker')} with {_count(workers['slots'], 'place')} in all"
    if not ahead:
        return Why(WhyCode.NEXT, f"It is next: it starts as soon as a place is free ({at_work}).", places)
    more = ahead > ask.MOST_AHEAD
    number = f"More than {ask.MOST_AHEAD:,} jobs are" if more else "1 job is" if ahead == 1 else f"{ahead:,} jobs are"
    return Why(
        WhyCode.AHEAD,
        f"{number} ahead of it; {at_work}, {jobs['queue']:,} of them taken.",
        {"ahead": min(ahead, ask.MOST_AHEAD), "more": more, "priority": Priority(row["priority"]).label, **places},
    )


def _later(row: dict[str, Any]) -> Why:
    at, error = row["run_at"], row["error"] or {}
    when = _when(at, row["now"])
    if row["next_retry_at"] is not None:
        return Why(
            WhyCode.RETRYING,
            f"Try {row['attempt']} failed: {_sentence(error.get('message'))} It is tried again {when} "
            f"(retry {row['retry_count']} of {row['max_retries']}).",
            {
                "next_retry_at": at,
                "error": error_json(row["error"]),
                "retry_count": row["retry_count"],
                "max_retries": row["max_retries"],
            },
        )
    if row["attempt"] and error.get("code") == "job.snoozed":
        return Why(
            WhyCode.SNOOZED,
            f"It was too early: {_sentence(error.get('message'))} It goes on {when}.",
            {"run_at": at, "reason": error.get("message")},
        )
    return Why(WhyCode.DUE_LATER, f"It was asked for later: it is due {when}.", {"run_at": at})


def _no_worker(row: dict[str, Any], workers: dict[str, Any]) -> Why:
    seen = workers["seen_ago"]
    details = {"queue": row["queue"], "type": row["type"], "seen_seconds_ago": seen and round(seen, 1)}
    if workers["alive"]:
        return Why(
            WhyCode.NO_WORKER_FOR_TYPE,
            f"None of the {_count(workers['alive'], 'worker')} at work knows this kind of job ({_title(row['type'])}) "
            "yet. It starts once one that does is there.",
            details,
        )
    heard = "has been seen yet" if seen is None else f"has been heard of for {_span(seen)}"
    return Why(WhyCode.NO_WORKER, f"No worker for this kind of job {heard}. It starts as soon as one is back.", details)


class _Limits:
    """The limits that hold for one job, as the claim reads them (``_sql/claim.py``)."""

    def __init__(self, row: dict[str, Any], found: Rows, viewer: Viewer | None) -> None:
        self._row = row
        self._viewer = viewer
        self._queue = [r for r in found if r["scope"] == "queue"]
        # An organisation's own first, then what holds for each.
        mine = sorted((r for r in found if r["scope"] == "organisation"), key=lambda r: r["org_id"] == _NOBODY)
        self._organisation = mine
        # One rule holds for a key: its own, else that of its name anywhere, else that of any key.
        keys = [r for r in found if r["scope"] == "key" and row["concurrency_key"] is not None]
        keys.sort(key=lambda r: (r["org_id"] == _NOBODY, r["concurrency_key"] == ""))
        self._key = keys[:1]

    def _each(self) -> tuple[tuple[str, Rows, str], ...]:
        key = self._row["concurrency_key"]
        return (
            ("queue", self._queue, "The whole queue"),
            ("organisation", self._organisation, "Your organisation's work in this queue"),
            ("key", self._key, f"Work for “{key}”"),
        )

    def paused(self) -> Why | None:
        for scope, rules, what in self._each():
            for rule in rules:
                if rule["paused_at"] is None:
                    continue
                by, by_id = self._who(rule)
                reason = f": {_sentence(rule['pause_reason'])}" if rule["pause_reason"] else "."
                return Why(
                    WhyCode(f"paused.{scope}"),
                    f"{what} was paused by {by} {_ago(rule['paused_at'], self._row['now'])}{reason}",
                    {"since": rule["paused_at"], "paused_by": by_id, "reason": rule["pause_reason"]},
                )
        return None

    def _who(self, rule: dict[str, Any]) -> tuple[str, str | None]:
        """In words and, where the viewer may know, by id."""
        kind, _, id = (rule["paused_by"] or "").partition(":")
        if kind == "member" and rule["paused_by_org"] is not None:
            own = self._viewer is None or rule["paused_by_org"] == self._row["org_id"]
            if own or (self._viewer is not None and self._viewer.role == "super_admin"):
                known = encode(IdKind.MEMBER, UUID(id))
                return ("an administrator of your organisation" if own else "the operators"), known
        return "the operators", None

    def reached(self, in_queue: int, in_organisation: int, holders: Rows) -> Why | None:
        """The first limit that lets nothing more start now."""
        in_key = holders[0]["jobs"] if holders else 0
        for (scope, rules, what), running in zip(self._each(), (in_queue, in_organisation, in_key), strict=True):
            most = _first(rules, "max_running")
            if scope == "key" and most is None and self._row["concurrency_key"] is not None:
                most = self._row["concurrency_limit"]
            if most is not None and running >= most:
                return self._full(scope, what, running, most, holders)
            limit, period = _first(rules, "start_limit"), _first(rules, "start_period")
            if limit is not None and period is not None and rules:
                tokens = limit if rules[0]["tokens"] is None else rules[0]["tokens"]
                tokens = min(float(limit), tokens + max(0.0, rules[0]["filled_ago"] or 0.0) * limit / period)
                if tokens < 1:
                    at = self._row["now"] + timedelta(seconds=(1 - tokens) * period / limit)
                    return Why(
                        WhyCode(f"rate.{scope}"),
                        f"{what} may start {_jobs(limit)} in {_span(period)}, and has; the next start is allowed "
                        f"{_when(at, self._row['now'])}.",
                        {"start_limit": limit, "start_period": period, "next_start_at": at},
                    )
        return None

    def _full(self, scope: str, what: str, running: int, most: int, holders: Rows) -> Why:
        details: dict[str, Any] = {"running": running, "max_running": most}
        if scope != "key":
            if not most:
                return Why(WhyCode(f"limit.{scope}"), f"{what} may run nothing at present.", details)
            sentence = f"{what} may run {_jobs(most)} at once, and {_are(running)} running. It starts when one ends."
            return Why(WhyCode(f"limit.{scope}"), sentence, details)
        details |= {"concurrency_key": self._row["concurrency_key"], "jobs": _seen(holders)}
        named = ", ".join(_title(h["type"]) for h in holders[:3] if h["visible"])
        held = self._row["hold"] == Hold.KEY
        return Why(
            WhyCode.KEY_TAKEN if held else WhyCode.LIMIT_KEY,
            f"{what} may run {_jobs(most)} at once, and {_are(running)} running"
            f"{f' ({named})' if named else ''}. It starts when one ends.",
            details,
        )


def _first(rules: Rows, column: str) -> Any:
    """An organisation's own number, else that of each organisation."""
    return next((r[column] for r in rules if r[column] is not None), None)


# --- begun and ended ---------------------------------------------------------------------------


def _processing(row: dict[str, Any]) -> Steps[Why]:
    workers = yield ask.worker(row["worker_id"])
    events = yield ask.last_event(row["id"])
    worker = workers[0] if workers else None
    healthy = worker is not None and worker["seen_ago"] <= worker["lease_seconds"] and row["lease_until"] > row["now"]
    details = {
        "started_at": row["started_at"],
        "attempt": row["attempt"],
        "worker_id": None if row["worker_id"] is None else str(row["worker_id"]),
        "lease_until": row["lease_until"],
        "healthy": healthy,
        "percent": row["progress"],
        "step": row["step"],
        "last_sign_at": events[0]["at"] if events else row["started_at"],
    }
    begun = f"It began {_ago(row['started_at'], row['now'])}"
    if healthy:
        step = f": {_sentence(row['step'])}" if row["step"] else "."
        return Why(WhyCode.PROCESSING, f"{begun} and is at {row['progress']} %{step} Its worker is well.", details)
    left = max(0.0, (row["lease_until"] - row["now"]).total_seconds()) + _RESCUE_SECONDS
    heard = "has gone" if worker is None else f"has not been heard of for {_span(worker['seen_ago'])}"
    details["given_back_within_seconds"] = math.ceil(left)
    return Why(
        WhyCode.WORKER_LOST,
        f"{begun}, but its worker {heard}. If that stays so, it is given to another within {_span(math.ceil(left))}.",
        details,
    )


# What can be done about a failure; where nothing is listed, the error's own sentence says it.
_REMEDIES = {
    "job.parent_failed": "Start the step before it once more; this one follows.",
    "job.time_limit": "Try again with a smaller file or fewer pages.",
    "job.stalled": "Start it once more; if it happens again, the file itself may be the cause.",
    "job.crashed": "Start it once more; if it happens again, the file itself may be the cause.",
    "job.internal_error": "Start it once more; if it happens again, send the job's id to support.",
}


def _failed(row: dict[str, Any]) -> Why:
    error = error_json(row["error"]) or {}
    remedy = _REMEDIES.get(error.get("code") or "")
    tries = f"after {_count(row['attempt'], 'try', 'tries')}" if row["attempt"] else "before it began"
    message = _sentence(error.get("message"))
    # Some sentences say it themselves.
    hint = f" {remedy}" if remedy and "again" not in message.lower() else ""
    return Why(
        WhyCode.FAILED,
        f"It failed {tries}: {message}{hint}",
        {"error": error, "remedy": remedy, "attempts": row["attempt"], "finished_at": row["finished_at"]},
    )


def _cancelled(row: dict[str, Any], viewer: Viewer | None) -> Steps[Why]:
    events = yield ask.last_event(row["id"])
    event: Mapping[str, Any] = events[0] if events and events[0]["kind"] == EventKind.CANCELLED else {}
    actor = str(event.get("actor", ""))
    by = row["cancelled_by"]
    if actor.startswith("parent:"):
        who = "because the step before it did not complete"
    elif viewer is not None and by == viewer.member_id:
        who = "by you"
    else:
        who = "by a member of your organisation" if by is not None else "by the system"
    reason = (event.get("data") or {}).get("reason")
    return Why(
        WhyCode.CANCELLED,
        f"It was cancelled {who} {_ago(row['cancelled_at'], row['now'])}{': ' + _sentence(reason) if reason else '.'}",
        {
            "cancelled_at": row["cancelled_at"],
            "cancelled_by": None if by is None else encode(IdKind.MEMBER, by),
            "reason": reason,
        },
    )


# --- words -------------------------------------------------------------------------------------

_STATE = {
    Status.WAITING: "waits itself",
    Status.QUEUED: "not begun",
    Status.PROCESSING: "in progress",
    Status.COMPLETED: "done",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


def _seen(rows: Rows) -> list[dict[str, Any]]:
    """The jobs among ``rows`` that the viewer may see."""
    return [{"id": encode(IdKind.JOB, r["id"]), "type": r["type"], "status": r["status"]} for r in rows if r["visible"]]


def _title(job_type: str) -> str:
    try:
        return JOB_TYPES.get(job_type).title
    except UnknownJobType:
        return job_type


def _sentence(text: Any) -> str:
    text = str(text or "no reason is known").strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if n == 1 else f"{n:,} {many or one + 's'}"


def _jobs(n: int, *, other: bool = False) -> str:
    return _count(n, "other job" if other else "job")


def _are(n: int) -> str:
    return "1 is" if n == 1 else f"{n:,} are"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return _count(math.ceil(seconds), "second")


def _clock(at: datetime) -> str:
    return f"{at:%d %B %Y, %H:%M} UTC"


def _near(tell: Callable[[str], str], seconds: float, at: datetime) -> str:
    return tell(_span(seconds)) if seconds < 2 * 3_600 else f"on {_clock(at)}"


def _when(at: datetime, now: datetime) -> str:
    return _near(lambda span: f"in {span}", max(0.0, (at - now).total_seconds()), at)


def _ago(at: datetime, now: datetime) -> str:
    return _near(lambda span: f"{span} ago", max(0.0, (now - at).total_seconds()), at)
