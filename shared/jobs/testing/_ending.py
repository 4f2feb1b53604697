"""How jobs end in memory, and what follows: events, batches, notifications, children, keys that come free.

Says in plain Python what ``_sql/attempt.py``, ``_sql/follow.py`` and ``_sql/parts.py`` say in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from shared import ids
from shared.contracts import NOTIFY_EMAIL, NOTIFY_WEBHOOK

from ..models import Moved, Outcome, Wake
from ..states import TERMINAL, EventKind, Hold, Priority, Status, allowed
from ..store import WorkerIdentity
from . import _claiming
from ._tables import JOB_DEFAULTS, Row, Tables, as_stored

__all__ = ["cancel", "release_orphans", "rescue", "settle"]


@dataclass(slots=True)
class _Trail:
    """What has moved so far in a transaction, and what is to follow yet."""

    jobs: list[tuple[UUID, Status]] = field(default_factory=list)
    wakes: list[Wake] = field(default_factory=list)
    parents: list[Row] = field(default_factory=list)  # have ended
    completions: list[UUID] = field(default_factory=list)  # jobs whose batch has finished


def _move(
    tables: Tables, trail: _Trail, row: Row, kind: EventKind, actor: str, data: Mapping[str, Any], **columns: Any
) -> None:
    """One transition with its event. The caller has checked what the row's state allows."""
    transition = allowed(kind)
    assert row["status"] in transition.sources, kind
    if transition.target in TERMINAL:
        columns["finished_at"] = tables.now()
    tables.change(row, status=transition.target.value, **columns)
    tables.event(row, kind, actor, {name: _without_nulls(value) for name, value in data.items() if value is not None})
    if kind is not EventKind.UNBLOCKED:
        trail.jobs.append((row["id"], transition.target))
    _wake(tables, trail, row)
    if row["status"] in TERMINAL and row["has_children"]:
        trail.parents.append(row)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def _wake(tables: Tables, trail: _Trail, row: Row) -> None:
    if row["status"] == Status.QUEUED and row["run_at"] <= tables.now():
        trail.wakes.append(Wake(row["queue"], row["id"], row["priority"]))


def settle(tables: Tables, worker_id: UUID, outcomes: Sequence[Outcome], *, plain: bool) -> Moved:
    trail = _Trail()
    moved = []
    for outcome in outcomes:
        row = tables.jobs.get(outcome.id)
        if row is None or row["attempt"] != outcome.attempt or row["status"] != Status.PROCESSING:
            continue
        if plain and not _nothing_follows(row, outcome):
            continue
        _settle(tables, trail, row, outcome, f"worker:{worker_id}")
        moved.append(row)
    return _follow(tables, trail, moved)


def _nothing_follows(row: Row, outcome: Outcome) -> bool:
    if row["concurrency_key"] is not None:
        return False
    followed = row["has_children"] or any(row[name] is not None for name in ("batch_id", "webhook_url", "notify_email"))
    return outcome.status not in TERMINAL or not followed


def _settle(tables: Tables, trail: _Trail, row: Row, outcome: Outcome, actor: str) -> None:
    now = tables.now()
    error = None if outcome.error is None else as_stored(dict(outcome.error))
    again = outcome.status is Status.QUEUED
    next_retry_at = now + timedelta(seconds=outcome.delay or 0) if again and outcome.charge else None
    columns: dict[str, Any] = {
        "result": as_stored(outcome.result),
        "error": None if outcome.status is Status.COMPLETED else error or row["error"],
        "retry_count": row["retry_count"] + outcome.charge,
        "next_retry_at": next_retry_at,
        "lease_until": None,
        "worker_id": None,
    }
    if outcome.status is Status.COMPLETED:
        columns["progress"] = 100
    if again and outcome.delay is not None:
        columns["run_at"] = now + timedelta(seconds=outcome.delay)
    _move(tables, trail, row, outcome.kind, actor, {"error": error, "next_retry_at": next_retry_at}, **columns)


def rescue(tables: Tables, *, limit: int, max_stalls: int, max_crashes: int) -> Moved:
    now = tables.now()
    lost = [
        row
        for row in tables.jobs.values()
        if row["status"] == Status.PROCESSING and row["lease_until"] is not None and row["lease_until"] < now
    ]
    trail = _Trail()
    for row in lost[:limit]:
        # Heard of since it last renewed this lease: the worker lives, so the job stands still.
        worker = tables.workers.get(row["worker_id"])
        alive = worker is not None and worker.seen_at > row["lease_until"] - timedelta(seconds=worker.lease_seconds / 2)
        _rescue(tables, trail, row, alive, max_stalls if alive else max_crashes, max_crashes)
    return _follow(tables, trail, lost[:limit])


def _rescue(tables: Tables, trail: _Trail, row: Row, alive: bool, most: int, max_crashes: int) -> None:
    counter = "stall_count" if alive else "crash_count"
    count = row[counter] + 1
    dead = count > most
    columns: dict[str, Any] = {counter: count, "lease_until": None, "worker_id": None}
    if not alive and not dead and count >= max_crashes:
        columns["hold"] = Hold.ALONE.value
    if dead:
        what = "This stood still" if alive else "The program doing this ended"
        how = "times without finishing" if alive else "times in the middle of it"
        columns["error"] = {
            "code": "job.stalled" if alive else "job.crashed",
            "message": f"{what} {count} {how}, so it was set aside. "
            "Please try again; if it keeps happening, the file itself may be the cause.",
        }
    kind = EventKind.FAILED if dead else EventKind.STALLED if alive else EventKind.CRASHED
    counts = {name: columns.get(name, row[name]) for name in ("stall_count", "crash_count")}
    data = {"reason": "lease ran out", **counts, "error": columns.get("error")}
    _move(tables, trail, row, kind, "scheduler", data, **columns)


def release_orphans(tables: Tables, worker: WorkerIdentity, held: Sequence[UUID], lease_seconds: float) -> Moved:
    soon = tables.now() + timedelta(seconds=lease_seconds / 2)
    orphans = [
        row
        for row in tables.running(worker.queue)
        if row["worker_id"] == worker.id and row["lease_until"] < soon and row["id"] not in held
    ]
    trail = _Trail()
    for row in orphans:
        data = {"reason": "not running here"}
        _move(tables, trail, row, EventKind.RELEASED, f"worker:{worker.id}", data, lease_until=None, worker_id=None)
    return _follow(tables, trail, orphans)


def cancel(tables: Tables, wanted: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
    rows = [tables.jobs[id] for id in dict.fromkeys(wanted) if id in tables.jobs]
    rows = [row for row in rows if row["status"] in allowed(EventKind.CANCELLED).sources]
    trail = _Trail()
    for row in rows:
        _move(
            tables,
            trail,
            row,
            EventKind.CANCELLED,
            actor,
            {"reason": reason},
            cancelled_at=tables.now(),
            cancelled_by=member_id,
            lease_until=None,
            worker_id=None,
            next_retry_at=None,
        )
    return _follow(tables, trail, rows)


def _follow(tables: Tables, trail: _Trail, moved: Sequence[Row]) -> Moved:
    """All that follows from ``moved``: until nothing moves."""
    keys = {
        (row["queue"], row["org_id"], row["concurrency_key"]) for row in moved if row["concurrency_key"] is not None
    }
    ended = [row for row in moved if row["status"] in TERMINAL]
    while ended or trail.parents or trail.completions:
        _count(tables, trail, ended)
        for row in ended:
            _notify(tables, trail, row)
        parents, trail.parents = trail.parents, []
        completions, trail.completions = trail.completions, []
        _free(tables, trail, parents)
        ended = _block(tables, trail, parents)
        for id in completions:
            row = tables.jobs[id]
            if row["status"] in allowed(EventKind.UNBLOCKED).sources:
                _count_off(tables, trail, row, 1, "batch")
    wakes = (*trail.wakes, *_claiming.unhold(tables, keys))
    return Moved(tuple(trail.jobs), wakes)


def _count(tables: Tables, trail: _Trail, ended: Sequence[Row]) -> None:
    """The counters of the batches of ``ended``, and the end of those that are through."""
    touched: dict[UUID, Row] = {}
    for row in ended:
        batch = tables.batches.get(row["batch_id"]) if row["batch_id"] is not None else None
        if batch is not None:
            tables.change(batch, **{row["status"]: batch[row["status"]] + 1})
            touched[batch["id"]] = batch
    for batch in touched.values():
        if batch["finished_at"] is not None or (
            batch["completed"] + batch["failed"] + batch["cancelled"] < batch["total"]
        ):
            continue
        tables.change(batch, finished_at=tables.now())
        if batch["webhook_url"] is not None:
            _owe(tables, trail, batch, NOTIFY_WEBHOOK, {"url": batch["webhook_url"]}, "batch.completed")
        if batch["completion_job_id"] is not None:
            trail.completions.append(batch["completion_job_id"])


def _notify(tables: Tables, trail: _Trail, row: Row) -> None:
    event = f"job.{row['status']}"
    if row["webhook_url"] is not None:
        _owe(tables, trail, row, NOTIFY_WEBHOOK, {"url": row["webhook_url"]}, event)
    if row["notify_email"] is not None and row["status"] != Status.CANCELLED:
        _owe(tables, trail, row, NOTIFY_EMAIL, {"to": row["notify_email"]}, event)


def _owe(tables: Tables, trail: _Trail, subject: Row, job_type: Any, target: Mapping[str, str], event: str) -> None:
    """The outbox: a notification is a job, written with what it tells of."""
    now = tables.now()
    row = {
        **JOB_DEFAULTS,
        "id": ids.new_uuid(),
        "org_id": subject["org_id"],
        "created_by": subject["created_by"],
        "type": job_type.name,
        "queue": job_type.queue,
        "status": Status.QUEUED.value,
        "priority": Priority.NORMAL.value,
        "max_retries": job_type.policy.max_retries,
        "time_limit": float(job_type.policy.time_limit),
        "payload": {**target, **as_stored({"event": event, "subject_id": subject["id"], "occurred_at": now})},
        "metadata": {},
        "created_at": now,
        "run_at": now,
    }
    tables.add(tables.jobs, row["id"], row)
    tables.event(row, EventKind.ACCEPTED, "outbox")
    _wake(tables, trail, row)


def _children(tables: Tables, parents: Sequence[Row]) -> dict[UUID, list[tuple[Row, str]]]:
    """Of each child: those of ``parents`` that it has, and what its edges to them say."""
    found: dict[UUID, list[tuple[Row, str]]] = {}
    for parent in parents:
        for child in tables.children.get(parent["id"], ()):
            found.setdefault(child, []).append((parent, tables.edges[child, parent["id"]]))
    return found


def _free(tables: Tables, trail: _Trail, parents: Sequence[Row]) -> None:
    """Count ended parents off their waiting children."""
    for child, edges in _children(tables, parents).items():
        row = tables.jobs[child]
        done = sum(1 for parent, on_failure in edges if parent["status"] == Status.COMPLETED or on_failure == "run")
        if done and row["status"] == Status.WAITING:
            _count_off(tables, trail, row, done, "parents")


def _count_off(tables: Tables, trail: _Trail, row: Row, parents: int, actor: str) -> None:
    """So many fewer to wait for; none left: queued."""
    tables.change(row, pending_parents=row["pending_parents"] - parents)
    if row["pending_parents"] <= 0:
        _move(tables, trail, row, EventKind.UNBLOCKED, actor, {})


def _block(tables: Tables, trail: _Trail, parents: Sequence[Row]) -> list[Row]:
    """End the waiting children of parents that did not complete, as each edge says. Those that it ended."""
    ended = []
    for child, edges in _children(tables, parents).items():
        row = tables.jobs[child]
        failed = [
            (parent, on_failure)
            for parent, on_failure in edges
            if on_failure != "run" and parent["status"] != Status.COMPLETED
        ]
        if not failed or row["status"] != Status.WAITING:
            continue
        parent, on_failure = min(failed, key=lambda edge: (edge[0]["status"], edge[0]["id"]))
        actor = f"parent:{parent['id']}"
        if on_failure == "cancel" or parent["status"] == Status.CANCELLED:
            at, by = tables.now(), parent["cancelled_by"]
            _move(tables, trail, row, EventKind.CANCELLED, actor, {}, cancelled_at=at, cancelled_by=by)
        else:
            error = _parent_failed(parent)
            _move(tables, trail, row, EventKind.FAILED, actor, {"error": error}, error=error)
        ended.append(row)
    return ended


def _parent_failed(parent: Row) -> Row:
    error = parent["error"] or {}
    return {
        "code": "job.parent_failed",
        "message": error.get("message") or "The step that this one waits for failed.",
        "details": {"parent_id": str(parent["id"]), "parent_code": error.get("code")},
    }
