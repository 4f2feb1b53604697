"""Notifications that leave the system: signed webhooks and mails."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from .contract import Contract

__all__ = [
    "EmailPayload",
    "EmailResult",
    "EventType",
    "WebhookEvent",
    "WebhookPayload",
    "WebhookResult",
]

EventType = Literal["job.completed", "job.failed", "job.cancelled", "batch.completed"]


class WebhookEvent(Contract):
    """The body a consumer receives. ``data`` is the job (or batch) as the API shows it."""

    type: EventType
    timestamp: datetime
    data: dict[str, Any]


class WebhookPayload(Contract):
    """Deliver the outcome of ``subject_id`` (a job or a batch) to ``url``. The body is built at delivery
    from the subject's row, so that it is never copied into a second place."""

    url: Annotated[str, Field(max_length=2048)]
    event: EventType
    subject_id: UUID
    occurred_at: datetime


class WebhookResult(Contract):
    status_code: int
    duration_ms: int


class EmailPayload(Contract):
    """Mail ``to`` about the outcome of a job."""

    to: Annotated[str, Field(max_length=320)]
    event: EventType
    subject_id: UUID
    occurred_at: datetime


class EmailResult(Contract):
    message_id: str
    recipients: int
