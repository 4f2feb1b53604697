"""A job, a batch and an event as the outside sees them: the gateway's answers and the bodies of webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from shared.ids import IdKind, encode

from .attempts import Attempt, AttemptPage
from .figures import JobStats, QueueFigures
from .states import TERMINAL, TRANSITIONS, EventKind, Priority, Status

if TYPE_CHECKING:
    from .why import Why  # which shows errors as this module does

__all__ = [
    "API_PREFIX",
    "attempts_json",
    "error_json",
    "event_json",
    "job_json",
    "queue_json",
    "stats_json",
    "why_json",
]

API_PREFIX = "/api/v1"

# Ids inside payloads that are worth showing, and what they name.
_REFERENCES = {
    "document_id": IdKind.DOCUMENT,
    "submission_id": IdKind.SUBMISSION,
    "grading_id": IdKind.GRADING,
    "standard_id": IdKind.STANDARD,
}


def _optional(kind: IdKind, value: UUID | None) -> str | None:
    return None if value is None else encode(kind, value)


def error_json(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Code, sentence and details; a parent by its public id, and nothing of our own code's inside."""
    if error is None:
        return None
    details = {k: v for k, v in (error.get("details") or {}).items() if k not in ("exception", "traceback")}
    if "parent_id" in details:
        details["parent_id"] = encode(IdKind.JOB, UUID(details["parent_id"]))
    return {"code": error.get("code"), "message": error.get("message"), "details": details}


def job_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A job row (``queries.get_job``) as API.md shows it. Timestamps stay datetimes."""
    status = Status(row["status"])
    job_id = encode(IdKind.JOB, row["id"])
    path = f"{API_PREFIX}/jobs/{job_id}"
    payload = row["payload"] if isinstance(row["payload"], dict) else {}
    return {
        "id": job_id,
        "type": row["type"],
        "queue": row["queue"],
        "status": status.value,
        "priority": Priority(row["priority"]).label,
        "done": status in TERMINAL,
        "progress": {
            "percent": row["progress"],
            "step": row["step"] if row["step"] and status is Status.PROCESSING else _step(status),
            "seq": row["event_seq"],
        },
        "attempt": row["attempt"],
        "max_retries": row["max_retries"],
        "retry_count": row["retry_count"],
        "next_retry_at": row["next_retry_at"],
        "run_at": row["run_at"],
        "created_at": row["created_at"],
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
        "cancelled_at": row["cancelled_at"],
        "cancelled_by": _optional(IdKind.MEMBER, row["cancelled_by"]),
        "batch_id": _optional(IdKind.BATCH, row["batch_id"]),
        "depends_on": [encode(IdKind.JOB, p) for p in row.get("depends_on") or ()],
        "error": error_json(row["error"]),
        "metadata": row["metadata"],
        "refs": {k: encode(kind, UUID(payload[k])) for k, kind in _REFERENCES.items() if payload.get(k)},
        "links": {
            "self": path,
            "result": f"{path}/result",
            "events": f"{path}/events",
            "cancel": f"{path}/cancel",
            "attempts": f"{path}/attempts",
            "why": f"{path}/why",
        },
    }


def _step(status: Status) -> str:
    return {
        Status.WAITING: "Waiting for the step before it",
        Status.QUEUED: "Waiting for its turn",
        Status.PROCESSING: "Starting",
        Status.COMPLETED: "Complete",
        Status.FAILED: "Failed",
        Status.CANCELLED: "Cancelled",
    }[status]


_STATUS_AFTER = {t.kind: t.target for t in TRANSITIONS}


def event_json(job_id: UUID, row: Mapping[str, Any]) -> dict[str, Any]:
    """An event row (``queries.EVENTS``) as a stream sends it. ``status`` is there where the event changed it."""
    kind = EventKind(row["kind"])
    data = dict(row["data"])
    if "error" in data:
        data["error"] = error_json(data["error"])
    body: dict[str, Any] = {
        "job_id": encode(IdKind.JOB, job_id),
        "seq": row["seq"],
        "kind": kind.value,
        "at": row["at"],
        "attempt": row["attempt"],
    }
    if kind in _STATUS_AFTER:
        body["status"] = _STATUS_AFTER[kind].value
    if kind is EventKind.PROGRESS:
        body["progress"] = data
    else:
        body.update(data)
    return body


def attempts_json(page: AttemptPage) -> dict[str, Any]:
    """A page of attempts, newest first, as the API shows it."""
    return {
        "items": [_attempt_json(a) for a in page.attempts],
        "has_more": page.before is not None,
        "next_cursor": None if page.before is None else str(page.before),
    }


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    error = error_json(attempt.error)
    if error is not None and attempt.traceback is not None:
        error |= {"exception": attempt.exception, "traceback": list(attempt.traceback)}
    known = attempt.host is not None
    return {
        "attempt": attempt.number,
        "outcome": None if attempt.outcome is None else attempt.outcome.value,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "seconds": attempt.seconds,
        "worker": {"id": attempt.worker_id, **({"host": attempt.host, "pid": attempt.pid} if known else {})},
        "progress": None if attempt.percent is None else {"percent": attempt.percent, "step": attempt.step},
        "error": error,
        "log": [{"at": line.at, "message": line.message, "fields": line.fields} for line in attempt.log],
        "log_truncated": attempt.log_truncated,
    }


def stats_json(stats: JobStats) -> dict[str, Any]:
    """Counts by status and type. Where ``exact`` is false they are of ``as_of``, or (null) lower bounds."""
    return {
        "total": stats.total,
        "by_status": {s.value: jobs for s, jobs in stats.by_status.items()},
        "by_type": {t: {s.value: jobs for s, jobs in of.items()} for t, of in stats.by_type.items()},
        "exact": stats.exact,
        "as_of": stats.as_of,
    }


def queue_json(figures: QueueFigures) -> dict[str, Any]:
    """A queue as GET /queues shows it. Seconds; ``as_of`` is when the depths were counted."""
    f = figures
    return {
        "name": f.queue,
        "as_of": f.as_of,
        "depth": f.due,
        "in_flight": f.processing,
        "due_later": f.later,
        "held": f.held,
        "waiting": f.waiting,
        "failed": f.failed,
        "oldest_seconds": f.oldest_seconds,
        "throughput_per_minute": f.per_minute,
        "latency": {
            "wait_seconds": {"p50": f.wait_p50, "p95": f.wait_p95},
            "run_seconds": {"p50": f.run_p50, "p95": f.run_p95},
        },
        "paused": f.paused_at is not None,
        "paused_at": f.paused_at,
        "pause_reason": f.pause_reason,
        "limits": {"max_running": f.max_running, "start_limit": f.start_limit, "start_period": f.start_period},
        "workers": {"alive": f.workers, "slots": f.slots, "job_types": list(f.job_types)},
    }


def why_json(why: Why) -> dict[str, Any]:
    return {"code": why.code.value, "sentence": why.sentence, "details": why.details}
