"""The Postgres store behind the interface: the functions of ``shared.jobs``, each on a connection of the pool."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg

from shared.contracts import JOB_TYPES, Registry
from shared.db import SyncPool

from .. import limits as _limits
from .. import store as _store
from ..limits import Limit, LimitTarget
from ..models import LostLease, Moved, NewBatch, NewJob, Outcome, Wake
from ..store import Claims, WorkerIdentity
from ..submit import Accepted, insert_batch, submit

__all__ = ["PostgresStore"]

Connection = psycopg.Connection[dict[str, Any]]


class PostgresStore:
    """A JobStore over a pool. Thread-safe, as the pool is."""

    def __init__(self, pool: SyncPool, registry: Registry = JOB_TYPES, *, settle_seconds: float = 0.0) -> None:
        """``settle_seconds``: how long after a start of Postgres ``rescue`` judges nobody."""
        self._pool = pool
        self._registry = registry
        self._settle_seconds = settle_seconds
        self._mine = threading.local()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        outer: Connection | None = getattr(self._mine, "conn", None)
        if outer is not None:
            with outer.transaction():
                yield outer
            return
        with self._pool.connection() as conn, conn.transaction():
            self._mine.conn = conn
            try:
                yield conn
            finally:
                self._mine.conn = None

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """For calls that need no transaction around them, or open their own."""
        outer: Connection | None = getattr(self._mine, "conn", None)
        if outer is not None:
            yield outer
        else:
            with self._pool.connection() as conn:
                yield conn

    def submit(self, jobs: Sequence[NewJob]) -> Accepted:
        with self._connection() as conn:
            return submit(conn, jobs, self._registry)

    def insert_batch(self, batch: NewBatch) -> dict[str, Any]:
        with self._connection() as conn:
            return insert_batch(conn, batch)

    def claim(
        self,
        *,
        queue: str,
        worker_id: UUID,
        lease_seconds: float,
        limit: int = 1,
        types: Sequence[str] | None = None,
        alone: bool = False,
    ) -> Claims:
        with self._connection() as conn:
            return _store.claim(
                conn,
                queue=queue,
                worker_id=worker_id,
                lease_seconds=lease_seconds,
                limit=limit,
                types=types,
                alone=alone,
            )

    def reserve(self, *, queue: str, worker_id: UUID, types: Sequence[str] | None = None) -> bool:
        with self._connection() as conn:
            return _store.reserve(conn, queue=queue, worker_id=worker_id, types=types)

    def heartbeat(
        self, worker: WorkerIdentity, held: Sequence[tuple[UUID, int]], lease_seconds: float
    ) -> list[LostLease]:
        with self._connection() as conn:
            return _store.heartbeat(conn, worker, held, lease_seconds)

    def leave(self, worker_id: UUID) -> None:
        with self._connection() as conn:
            _store.leave(conn, worker_id)

    def release_orphans(self, worker: WorkerIdentity, held: Sequence[UUID], lease_seconds: float) -> Moved:
        with self.transaction() as conn:
            return _store.release_orphans(conn, worker, held, lease_seconds)

    def progress(self, id: UUID, attempt: int, worker_id: UUID, percent: int, step: str) -> int | None:
        with self._connection() as conn:
            return _store.progress(conn, id, attempt, worker_id, percent, step)

    def log(self, id: UUID, attempt: int, worker_id: UUID, data: dict[str, Any]) -> int | None:
        with self._connection() as conn:
            return _store.log(conn, id, attempt, worker_id, data)

    def settle(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
        with self.transaction() as conn:
            return _store.settle(conn, worker_id, outcomes)

    def settle_plain(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
        with self._connection() as conn:
            return _store.settle_plain(conn, worker_id, outcomes)

    def rescue(
        self, *, limit: int = 500, max_stalls: int = _store.MAX_STALLS, max_crashes: int = _store.MAX_CRASHES
    ) -> Moved:
        with self.transaction() as conn:
            return _store.rescue(
                conn,
                limit=limit,
                max_stalls=max_stalls,
                max_crashes=max_crashes,
                settle_seconds=self._settle_seconds,
            )

    def cancel(self, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
        with self.transaction() as conn:
            return _store.cancel(conn, ids, member_id=member_id, actor=actor, reason=reason)

    def cancel_batch(self, batch_id: UUID, *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
        with self.transaction() as conn:
            return _store.cancel_batch(conn, batch_id, member_id=member_id, actor=actor, reason=reason)

    def set_limit(self, limit: Limit) -> None:
        with self._connection() as conn:
            _limits.set_limit(conn, limit)

    def pause(self, target: LimitTarget, *, actor: str, reason: str | None = None) -> None:
        with self._connection() as conn:
            _limits.pause(conn, target, actor=actor, reason=reason)

    def resume(self, target: LimitTarget) -> bool:
        with self._connection() as conn:
            return _limits.resume(conn, target)

    def limits(self, queue: str | None = None) -> list[Limit]:
        with self._connection() as conn:
            return _limits.limits(conn, queue)

    def unhold(self) -> tuple[Wake, ...]:
        with self._connection() as conn:
            return _store.unhold(conn)

    def due_queues(self) -> list[tuple[str, int, UUID]]:
        with self._connection() as conn:
            return _store.due_queues(conn)

    def get(self, id: UUID) -> dict[str, Any] | None:
        with self._connection() as conn:
            return conn.execute("select * from jobs where id = %s", (id,)).fetchone()

    def get_batch(self, id: UUID) -> dict[str, Any] | None:
        with self._connection() as conn:
            return conn.execute("select * from batches where id = %s", (id,)).fetchone()

    def jobs(self) -> list[dict[str, Any]]:
        with self._connection() as conn:
            return conn.execute("select * from jobs order by id").fetchall()

    def events(self, id: UUID) -> list[Mapping[str, Any]]:
        with self._connection() as conn:
            return list(conn.execute("select * from job_events where job_id = %s order by seq", (id,)))
