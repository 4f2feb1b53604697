"""The heartbeat: renews every lease of the process by one statement, on its own thread and connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import structlog

from shared.jobs import JobCancelled, LeaseLost, Status, store
from shared.jobs.store import WorkerIdentity
from shared.telemetry import metrics

from .publisher import Publisher
from .run import RunRegistry

__all__ = ["Heartbeat"]

_log = structlog.get_logger(__name__)
_ANY_LEASE = 1e9  # seconds: longer than twice what any lease has left


class Heartbeat:
    """Brings back cancellations and lost leases, and interrupts those runs. Gives back what is leased to this process
    although it does not run it.

    A second thread, the fence, never talks to Postgres: when that is away or hangs for longer than a lease, it
    interrupts the runs, because somebody else may hold them by then. It also cuts off a beat that hangs.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        worker: WorkerIdentity,
        runs: RunRegistry,
        publisher: Publisher,
        *,
        every: float,
        lease_seconds: float,
    ) -> None:
        self._connect = connect
        self._publisher = publisher
        self._worker = worker
        self._runs = runs
        self._every = every
        self._lease = lease_seconds
        self._stop = threading.Event()
        self._beater = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._fence = threading.Thread(target=self._watch, name="lease-fence", daemon=True)
        self._beat_at = time.monotonic()
        self._conn: psycopg.Connection[Any] | None = None
        self._swept_at = time.monotonic()  # when jobs in our name that we do not run were last given back

    def start(self) -> None:
        self._beater.start()
        self._fence.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in (self._beater, self._fence):
            if thread.is_alive():
                thread.join(2)
        if self._conn is not None and not self._beater.is_alive():
            with contextlib.suppress(psycopg.Error):
                self._leave(self._conn)
            self._conn.close()

    @property
    def age(self) -> float:
        """Seconds since a heartbeat last reached Postgres."""
        return time.monotonic() - self._beat_at

    @property
    def alive(self) -> bool:
        return self._beater.is_alive() and self._fence.is_alive()

    def beat(self) -> None:
        """One heartbeat, now. Raises psycopg.Error."""
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        sent = time.monotonic()
        runs = self._runs.all()
        held = [(r.claimed.id, r.claimed.attempt) for r in runs]
        lost = store.heartbeat(self._conn, self._worker, held, self._lease)
        gone = {(item.id, item.attempt): item.status for item in lost}
        for run in runs:
            key = (run.claimed.id, run.claimed.attempt)
            if key not in gone:
                run.lease_deadline = sent + self._lease
            elif gone[key] == Status.CANCELLED:
                run.interrupt(JobCancelled())
            elif gone[key] != Status.PROCESSING:
                run.interrupt(LeaseLost())
        self._beat_at = time.monotonic()
        if self._beat_at - self._swept_at >= self._lease / 3 and self._release_orphans(self._conn):
            self._swept_at = self._beat_at

    def _release_orphans(self, conn: psycopg.Connection[Any]) -> bool:
        """False while a claim is under way: its jobs may be taken for orphans. The next beat tries again."""
        runs = self._runs.all_unless_claiming()
        if runs is not None:
            self._release(conn, [r.claimed.id for r in runs], self._lease)
        return runs is not None

    def _leave(self, conn: psycopg.Connection[Any]) -> None:
        """Give back whatever could not be ended in time, so that nobody takes it for a crash, and sign off."""
        self._release(conn, [], _ANY_LEASE)
        store.leave(conn, self._worker.id)

    def _release(self, conn: psycopg.Connection[Any], held: list[UUID], lease_seconds: float) -> None:
        with conn.transaction():
            moved = store.release_orphans(conn, self._worker, held, lease_seconds)
        if moved.jobs:
            _log.warning("heartbeat.orphans_released", jobs=len(moved.jobs))
            self._publisher.moved(moved)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.beat()
            except Exception as e:
                _log.warning("heartbeat.failed", error=type(e).__name__, age=round(self.age, 1))
                conn, self._conn = self._conn, None
                if conn is not None:
                    with contextlib.suppress(Exception):
                        conn.close()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            try:
                metrics.HEARTBEAT_AGE.set(self.age)
                now = time.monotonic()
                for run in self._runs.all():
                    if now >= run.lease_deadline:
                        run.interrupt(LeaseLost())
                if self.age > self._lease:
                    self._cut_off()
            except Exception as e:
                _log.error("heartbeat.fence_failed", error=type(e).__name__)

    def _cut_off(self) -> None:
        """End a beat that waits for an answer which may never come (a network that swallows packets, a stopped
        server), so that the next one connects anew. Harmless to one that does not."""
        conn = self._conn
        if conn is None or conn.closed:
            return
        # By a duplicate: the descriptor's own may be closed by the beat's thread at any moment.
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as its:
            its.shutdown(socket.SHUT_RDWR)
