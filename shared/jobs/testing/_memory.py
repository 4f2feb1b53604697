"""Jobs in memory, for tests of job types that need no server."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from shared.contracts import JOB_TYPES, Registry

from .. import limits as _limits
from .. import store as _store
from ..limits import Limit, LimitTarget
from ..models import LostLease, Moved, NewBatch, NewJob, Outcome, Wake
from ..states import EventKind, Hold, Status
from ..store import Claims, WorkerIdentity
from ..submit import Accepted, insert_batch, submit
from . import _claiming, _ending
from ._accepting import MemoryConnection
from ._tables import Row, Tables, Worker, utc_now

__all__ = ["MemoryStore"]

_DUE_MOST = 1000
_NO_LIMIT = {
    "paused_at": None,
    "paused_by": None,
    "pause_reason": None,
    "max_running": None,
    "start_limit": None,
    "start_period": None,
}


class MemoryStore:
    """A JobStore that behaves as the Postgres one, by the time that ``clock`` tells. Thread-safe, by one lock.

    What it answers are copies: changing them changes nothing. Two calls never happen at one time, even by a clock that
    stands still, so what was accepted first is older. It does not speak to workers: ``drain`` runs its jobs.
    """

    def __init__(self, registry: Registry = JOB_TYPES, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.clock = clock
        self.registry = registry
        self._tables = Tables(clock)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[MemoryConnection]:
        """What is called inside commits together or, on an exception, not at all; other threads wait."""
        with self._tables.transaction():
            yield MemoryConnection(self._tables)

    # -- accepting

    def submit(self, jobs: Sequence[NewJob]) -> Accepted:
        with self.transaction() as conn:
            return submit(cast(Any, conn), jobs, self.registry)

    def insert_batch(self, batch: NewBatch) -> Row:
        with self.transaction() as conn:
            return insert_batch(cast(Any, conn), batch)

    # -- running

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
        with self._tables.transaction():
            claims = _claiming.claim(
                self._tables,
                queue=queue,
                worker_id=worker_id,
                lease_seconds=lease_seconds,
                limit=limit,
                types=types,
                alone=alone,
            )
            jobs = copy.deepcopy(list(claims))
            return Claims(jobs, alone=claims.alone, limited=claims.limited, wait=claims.wait)

    def reserve(self, *, queue: str, worker_id: UUID, types: Sequence[str] | None = None) -> bool:
        with self._tables.transaction():
            return _claiming.reserve(self._tables, queue=queue, worker_id=worker_id, types=types)

    def heartbeat(
        self, worker: WorkerIdentity, held: Sequence[tuple[UUID, int]], lease_seconds: float
    ) -> list[LostLease]:
        with self._tables.transaction():
            now = self._tables.now()
            known = self._tables.workers.get(worker.id)
            beat = Worker(now, lease_seconds if known is None else known.lease_seconds)
            self._tables.add(self._tables.workers, worker.id, beat)
            lost = []
            for id, attempt in held:
                row = self._fenced(id, attempt)
                if row is not None:
                    self._tables.change(row, lease_until=now + timedelta(seconds=lease_seconds))
                    continue
                other = self._tables.jobs.get(id)
                its = Status(other["status"]) if other is not None and other["attempt"] == attempt else None
                lost.append(LostLease(id, attempt, its))
            return lost

    def leave(self, worker_id: UUID) -> None:
        with self._tables.transaction():
            self._tables.drop(self._tables.workers, worker_id)

    def release_orphans(self, worker: WorkerIdentity, held: Sequence[UUID], lease_seconds: float) -> Moved:
        with self._tables.transaction():
            return _ending.release_orphans(self._tables, worker, held, lease_seconds)

    def progress(self, id: UUID, attempt: int, worker_id: UUID, percent: int, step: str) -> int | None:
        with self._tables.transaction():
            row = self._fenced(id, attempt)
            if row is None:
                return None
            self._tables.change(row, progress=max(row["progress"], min(100, percent)), step=step)
            data = {"percent": row["progress"], "step": step}
            return self._tables.event(row, EventKind.PROGRESS, f"worker:{worker_id}", data)

    def log(self, id: UUID, attempt: int, worker_id: UUID, data: dict[str, Any]) -> int | None:
        with self._tables.transaction():
            row = self._fenced(id, attempt)
            return None if row is None else self._tables.event(row, EventKind.LOG, f"worker:{worker_id}", data)

    def _fenced(self, id: UUID, attempt: int) -> Row | None:
        """The row while it is this attempt's."""
        row = self._tables.jobs.get(id)
        if row is None or row["attempt"] != attempt or row["status"] != Status.PROCESSING:
            return None
        return row

    # -- ending

    def settle(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
        with self._tables.transaction():
            return _ending.settle(self._tables, worker_id, outcomes, plain=False)

    def settle_plain(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved:
        with self._tables.transaction():
            return _ending.settle(self._tables, worker_id, outcomes, plain=True)

    def rescue(
        self, *, limit: int = 500, max_stalls: int = _store.MAX_STALLS, max_crashes: int = _store.MAX_CRASHES
    ) -> Moved:
        with self._tables.transaction():
            return _ending.rescue(self._tables, limit=limit, max_stalls=max_stalls, max_crashes=max_crashes)

    def cancel(self, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
        with self._tables.transaction():
            return _ending.cancel(self._tables, ids, member_id=member_id, actor=actor, reason=reason)

    def cancel_batch(self, batch_id: UUID, *, member_id: UUID | None, actor: str, reason: str | None) -> Moved:
        with self._tables.transaction():
            batch = self._tables.batches.get(batch_id)
            if batch is None or batch["finished_at"] is not None:
                return Moved()
            self._tables.change(
                batch,
                cancelled_at=batch["cancelled_at"] or self._tables.now(),
                cancelled_by=batch["cancelled_by"] or member_id,
            )
            wanted = [row["id"] for row in self._tables.jobs.values() if row["batch_id"] == batch_id]
            if batch["completion_job_id"] is not None:
                wanted.insert(0, batch["completion_job_id"])
            return _ending.cancel(self._tables, wanted, member_id=member_id, actor=actor, reason=reason)

    # -- limits

    def set_limit(self, limit: Limit) -> None:
        numbers = _limits._set(limit)  # checks them
        self._change_limit(
            limit.target, **{name: numbers[name] for name in ("max_running", "start_limit", "start_period")}
        )

    def pause(self, target: LimitTarget, *, actor: str, reason: str | None = None) -> None:
        with self._tables.transaction():
            since = (self._limit_row(target) or _NO_LIMIT)["paused_at"] or self._tables.now()
            self._change_limit(target, paused_at=since, paused_by=actor, pause_reason=reason)

    def resume(self, target: LimitTarget) -> bool:
        with self._tables.transaction():
            row = self._limit_row(target)
            if row is None or row["paused_at"] is None:
                return False
            self._change_limit(target, paused_at=None, paused_by=None, pause_reason=None)
            return True

    def limits(self, queue: str | None = None) -> list[Limit]:
        with self._tables.transaction():
            rows = [row for key, row in sorted(self._tables.limits.items()) if queue is None or key[0] == queue]
            return [_limits._limit(row) for row in rows]

    def _limit_row(self, target: LimitTarget) -> Row | None:
        return self._tables.limits.get(_limit_key(target))

    def _change_limit(self, target: LimitTarget, **columns: Any) -> None:
        with self._tables.transaction():
            row = {**_NO_LIMIT, **target.parameters, **(self._limit_row(target) or {}), **columns}
            if (row["paused_at"], row["max_running"], row["start_limit"]) == (None, None, None):
                self._tables.drop(self._tables.limits, _limit_key(target))
            else:
                self._tables.add(self._tables.limits, _limit_key(target), row)

    def unhold(self) -> tuple[Wake, ...]:
        with self._tables.transaction():
            return _claiming.unhold(self._tables)

    # -- looking

    def due_queues(self) -> list[tuple[str, int, UUID]]:
        with self._tables.transaction():
            now = self._tables.now()
            due: dict[str, list[UUID]] = {}
            for row in self._tables.queued():
                if row["hold"] != Hold.KEY and row["run_at"] <= now:
                    due.setdefault(row["queue"], []).append(row["id"])
            return [(queue, min(len(found), _DUE_MOST), found[0]) for queue, found in due.items()]

    def next_due(self, queues: Sequence[str]) -> datetime | None:
        """When the first queued job of these queues that is not due yet will be."""
        with self._tables.transaction():
            now = self._tables.now()
            later = [row["run_at"] for queue in queues for row in self._tables.queued(queue) if row["run_at"] > now]
            return min(later, default=None)

    def get(self, id: UUID) -> Row | None:
        with self._tables.transaction():
            return copy.deepcopy(self._tables.jobs.get(id))

    def get_batch(self, id: UUID) -> Row | None:
        with self._tables.transaction():
            return copy.deepcopy(self._tables.batches.get(id))

    def jobs(self) -> list[Row]:
        with self._tables.transaction():
            return [copy.deepcopy(row) for _, row in sorted(self._tables.jobs.items())]

    def events(self, id: UUID) -> list[Mapping[str, Any]]:
        with self._tables.transaction():
            return copy.deepcopy(list(self._tables.events.get(id, ())))


def _limit_key(target: LimitTarget) -> tuple[str, str, UUID, str]:
    its = target.parameters
    return its["queue"], its["scope"], its["org_id"], its["concurrency_key"]
