"""The rows of the in-memory store: what is written inside a transaction stands or falls together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from shared.db.pools import dumps

from ..states import EventKind, Status

__all__ = ["BATCH_DEFAULTS", "JOB_DEFAULTS", "Row", "Tables", "Worker", "as_stored", "utc_now"]

Row = dict[str, Any]
LimitKey = tuple[str, str, UUID, str]  # queue, scope, org_id, concurrency_key

# What a column holds when nobody says; a test compares the names with the real tables'.
JOB_DEFAULTS: Row = {
    "id": None,
    "org_id": None,
    "created_by": None,
    "type": None,
    "queue": None,
    "status": None,
    "priority": None,
    "attempt": 0,
    "max_retries": None,
    "retry_count": 0,
    "stall_count": 0,
    "crash_count": 0,
    "pending_parents": 0,
    "has_children": False,
    "progress": 0,
    "event_seq": 0,
    "time_limit": None,
    "created_at": None,
    "run_at": None,
    "started_at": None,
    "finished_at": None,
    "next_retry_at": None,
    "cancelled_at": None,
    "cancelled_by": None,
    "lease_until": None,
    "worker_id": None,
    "batch_id": None,
    "concurrency_key": None,
    "concurrency_limit": 1,
    "unique_key": None,
    "hold": 0,
    "step": None,
    "payload": None,
    "metadata": None,
    "result": None,
    "error": None,
    "webhook_url": None,
    "notify_email": None,
}
BATCH_DEFAULTS: Row = {
    "id": None,
    "org_id": None,
    "created_by": None,
    "kind": None,
    "total": None,
    "completed": 0,
    "failed": 0,
    "cancelled": 0,
    "metadata": None,
    "webhook_url": None,
    "completion_job_id": None,
    "created_at": None,
    "finished_at": None,
    "cancelled_at": None,
    "cancelled_by": None,
}


@dataclass(slots=True)
class Worker:
    """A worker as its heartbeats record it."""

    seen_at: datetime
    lease_seconds: float


def as_stored(value: Any) -> Any:
    """``value`` as it comes back from a JSON column. Raises TypeError for what is not JSON."""
    return orjson.loads(dumps(value))


def utc_now() -> datetime:
    return datetime.now(UTC)


class Tables:
    """Rows by their keys, one lock, and an undo log. Every write goes through ``change``, ``add`` or ``event``."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.jobs: dict[UUID, Row] = {}
        self.batches: dict[UUID, Row] = {}
        self.events: dict[UUID, list[Row]] = {}
        self.edges: dict[tuple[UUID, UUID], str] = {}  # (child, parent): on_failure
        self.children: dict[UUID, list[UUID]] = {}
        self.limits: dict[LimitKey, Row] = {}
        self.buckets: dict[LimitKey, Row] = {}
        self.workers: dict[UUID, Worker] = {}
        self._undo: list[Callable[[], Any]] = []
        self._depth = 0
        self._last = datetime.min.replace(tzinfo=UTC)
        self._ahead = timedelta()  # of the clock
        self._now: datetime | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds the lock; an exception takes back what was written inside, as a savepoint does."""
        with self.lock:
            mark = len(self._undo)
            self._depth += 1
            try:
                yield
            except BaseException:
                while len(self._undo) > mark:
                    self._undo.pop()()
                raise
            finally:
                self._depth -= 1
                if not self._depth:
                    self._undo.clear()
                    self._now = None

    def now(self) -> datetime:
        """The time of the transaction: the same all through, and later than any before, though the clock stand still,
        so that what was accepted first is the older."""
        if self._now is None:
            now = self.clock() + self._ahead
            if now <= self._last:
                self._ahead += self._last + timedelta(microseconds=1) - now
                now = self._last + timedelta(microseconds=1)
            self._now = self._last = now
        return self._now

    def change(self, row: Row, **columns: Any) -> None:
        before = {name: row[name] for name in columns}
        self._undo.append(lambda: row.update(before))
        row.update(columns)

    def add(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Insert or replace."""
        if key in table:
            old = table[key]
            self._undo.append(lambda: table.__setitem__(key, old))
        else:
            self._undo.append(lambda: table.pop(key))
        table[key] = value

    def drop(self, table: dict[Any, Any], key: Any) -> None:
        if key in table:
            old = table.pop(key)
            self._undo.append(lambda: table.__setitem__(key, old))

    def add_edge(self, child: UUID, parent: UUID, on_failure: str) -> None:
        self.add(self.edges, (child, parent), on_failure)
        children = self.children.setdefault(parent, [])
        children.append(child)
        self._undo.append(children.pop)

    def event(self, row: Row, kind: EventKind, actor: str, data: Mapping[str, Any] | None = None) -> int:
        """The next event of the job, with the attempt that it is at. Its sequence number."""
        self.change(row, event_seq=row["event_seq"] + 1)
        event = {
            "job_id": row["id"],
            "seq": row["event_seq"],
            "org_id": row["org_id"],
            "at": self.now(),
            "kind": kind.value,
            "attempt": row["attempt"],
            "actor": actor,
            "data": as_stored(dict(data or {})),
        }
        events = self.events.setdefault(row["id"], [])
        events.append(event)
        self._undo.append(events.pop)
        return int(row["event_seq"])

    def queued(self, queue: str | None = None) -> list[Row]:
        return [
            row
            for row in self.jobs.values()
            if row["status"] == Status.QUEUED and (queue is None or row["queue"] == queue)
        ]

    def running(self, queue: str) -> list[Row]:
        return [row for row in self.jobs.values() if row["status"] == Status.PROCESSING and row["queue"] == queue]
