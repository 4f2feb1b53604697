"""Stand-ins for the runner: a context, its deps, and rows instead of a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from services.notifier.subjects import BatchSubject, JobSubject, Subject
from shared.jobs.context import JobInfo
from shared.settings import Settings
from shared.storage import Storage

ORG = UUID("018f0000-0000-7000-8000-000000000001")
NOTIFY_JOB = UUID("018f0000-0000-7000-8000-000000000002")
SUBJECT = UUID("018f0000-0000-7000-8000-000000000003")
BATCH = UUID("018f0000-0000-7000-8000-000000000004")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOTIFY = JobInfo(NOTIFY_JOB, ORG, "notify.webhook", 1, 0, None, NOON, None)


@dataclass
class Context:
    """A JobContext without a runner. ``interrupt`` does what the runner does: set the reason, call the stops."""

    job: JobInfo = NOTIFY
    logged: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    stops: list[Callable[[], None]] = field(default_factory=list)
    guarded: threading.Event = field(default_factory=threading.Event)
    reason: BaseException | None = None

    def progress(self, percent: int, step: str) -> None:
        pass

    def log(self, message: str, **fields: Any) -> None:
        self.logged.append((message, fields))

    @contextmanager
    def connection(self) -> Iterator[Any]:
        yield None

    @contextmanager
    def on_interrupt(self, stop: Callable[[], None]) -> Iterator[None]:
        self.stops.append(stop)
        self.guarded.set()
        try:
            yield
        finally:
            self.stops.remove(stop)

    def check(self) -> None:
        if self.reason is not None:
            raise self.reason

    def interrupt(self, reason: BaseException) -> None:
        self.reason = reason
        for stop in list(self.stops):
            stop()


@dataclass
class Dependencies:
    settings: Settings
    storage: Storage


@dataclass
class Rows:
    """What the loaders find; set ``subject`` to None for a deleted one."""

    subject: Subject | None
    file_name: str | None = "quiz 3b.pdf"
    version: int = 1
    asked: list[tuple[UUID, str, UUID]] = field(default_factory=list)


def job(**changes: Any) -> JobSubject:
    fields: dict[str, Any] = {
        "id": SUBJECT,
        "type": "ocr.document",
        "queue": "ocr",
        "status": "completed",
        "result": {"document_id": "doc_1", "confidence": 0.9},
        "error": None,
        "batch_id": BATCH,
        "metadata": {"class": "3b"},
        "attempt": 2,
        "created_at": NOON,
        "started_at": NOON,
        "finished_at": NOON,
    }
    return JobSubject(**{**fields, **changes})


def batch(**changes: Any) -> BatchSubject:
    fields: dict[str, Any] = {
        "id": BATCH, "total": 12, "completed": 10, "failed": 2, "cancelled": 0, "created_at": NOON, "finished_at": NOON,
    }  # fmt: skip
    return BatchSubject(**{**fields, **changes})
