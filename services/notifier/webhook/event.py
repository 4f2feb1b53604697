"""The body of a webhook: the event, its time, and the job or batch as the API shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from services.notifier.subjects import BatchSubject, Subject
from shared.contracts import WebhookEvent, WebhookPayload
from shared.ids import IdKind, encode

__all__ = ["build_body", "message_id"]


def message_id(notify_job_id: UUID) -> str:
    """``webhook-id``: the same on every attempt of one delivery, so that a consumer can drop repeats."""
    return "msg_" + encode(IdKind.JOB, notify_job_id).removeprefix("job_")


def build_body(payload: WebhookPayload, subject: Subject, public_url: str) -> bytes:
    """JSON of a ``WebhookEvent``. The same subject gives the same bytes. Times are in UTC, ids prefixed."""
    event = WebhookEvent(type=payload.event, timestamp=payload.occurred_at, data=_data(subject, public_url))
    return orjson.dumps(
        {"type": event.type, "timestamp": _utc(event.timestamp), "data": event.data}, option=orjson.OPT_UTC_Z
    )


def _data(subject: Subject, public_url: str) -> dict[str, Any]:
    base = f"{public_url.rstrip('/')}/api/v1"
    if isinstance(subject, BatchSubject):
        batch_id = encode(IdKind.BATCH, subject.id)
        return {
            "id": batch_id,
            "total": subject.total,
            "completed": subject.completed,
            "failed": subject.failed,
            "cancelled": subject.cancelled,
            "created_at": _utc(subject.created_at),
            "finished_at": _utc(subject.finished_at),
            "links": {"self": f"{base}/batches/{batch_id}"},
        }
    job_id = encode(IdKind.JOB, subject.id)
    return {
        "id": job_id,
        "type": subject.type,
        "queue": subject.queue,
        "status": subject.status,
        "attempt": subject.attempt,
        "batch_id": None if subject.batch_id is None else encode(IdKind.BATCH, subject.batch_id),
        "metadata": subject.metadata or {},
        "created_at": _utc(subject.created_at),
        "started_at": _utc(subject.started_at),
        "finished_at": _utc(subject.finished_at),
        "result": subject.result,
        "error": _error(subject.error),
        "links": {"self": f"{base}/jobs/{job_id}", "result": f"{base}/jobs/{job_id}/result"},
    }


def _error(error: Any) -> dict[str, Any] | None:
    """Code and sentence. The details stay here: of a surprise they are our frames, of a parent its bare UUID."""
    return {"code": error.get("code"), "message": error.get("message")} if isinstance(error, dict) else None


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
