"""The heartbeat: renews every lease of the process by one statement, on its own thread and connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

from shared.jobs import JobCancelled, LeaseLost, Status, store
from shared.jobs.store import WorkerIdentity
from shared.telemetry import metrics

from .run import RunRegistry

__all__ = ["Heartbeat"]

_log = structlog.get_logger(__name__)


class Heartbeat:
    """Brings back cancellations and lost leases, and interrupts those runs. When Postgres is away for longer than
    a lease, it interrupts its runs itself: somebody else may hold them by then."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        worker: WorkerIdentity,
        runs: RunRegistry,
        *,
        every: float,
        lease_seconds: float,
    ) -> None:
        self._connect = connect
        self._worker = worker
        self._runs = runs
        self._every = every
        self._lease = lease_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._beat_at = time.monotonic()
        self._conn: psycopg.Connection[Any] | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)
        if self._conn is not None:
            self._conn.close()

    @property
    def age(self) -> float:
        """Seconds since a heartbeat last reached Postgres."""
        return time.monotonic() - self._beat_at

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def beat(self) -> None:
        """One heartbeat, now. Raises psycopg.Error."""
        sent = time.monotonic()
        runs = self._runs.all()
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        held = [(r.claimed.id, r.claimed.attempt) for r in runs]
        lost = store.heartbeat(self._conn, self._worker, held, self._lease)
        gone = {(item.id, item.attempt): item.status for item in lost}
        for run in runs:
            key = (run.claimed.id, run.claimed.attempt)
            if key not in gone:
                run.lease_deadline = sent + self._lease
            elif gone[key] == Status.CANCELLED:
                run.interrupt(JobCancelled())
            else:
                run.interrupt(LeaseLost())
        self._beat_at = time.monotonic()
        metrics.HEARTBEAT_AGE.set(0)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.beat()
            except Exception as e:
                _log.warning("heartbeat.failed", error=type(e).__name__, age=round(self.age, 1))
                if self._conn is not None:
                    self._conn.close()
                    self._conn = None
            metrics.HEARTBEAT_AGE.set(self.age)
            now = time.monotonic()
            for run in self._runs.all():
                if now >= run.lease_deadline:
                    run.interrupt(LeaseLost())
