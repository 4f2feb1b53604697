"""A job, a batch and an event as the outside sees them: the gateway's answers and the bodies of webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from shared.ids import IdKind, encode

from .states import TERMINAL, TRANSITIONS, EventKind, Priority, Status

__all__ = ["API_PREFIX", "event_json", "job_json"]

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


def _error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
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
        "error": _error(row["error"]),
        "metadata": row["metadata"],
        "refs": {k: encode(kind, UUID(payload[k])) for k, kind in _REFERENCES.items() if payload.get(k)},
        "links": {
            "self": path,
            "result": f"{path}/result",
            "events": f"{path}/events",
            "cancel": f"{path}/cancel",
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
        data["error"] = _error(data["error"])
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
