"""What every job store promises. The promises themselves are tests: tests/shared/jobs/test_store_contract.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol
from uuid import UUID

from ..limits import Limit, LimitTarget
from ..models import LostLease, Moved, NewBatch, NewJob, Outcome, Wake
from ..store import MAX_CRASHES, MAX_STALLS, Claims, WorkerIdentity
from ..submit import Accepted

__all__ = ["JobStore"]


class JobStore(Protocol):
    """The calls of ``shared.jobs`` without the connection: each is one transaction, all or nothing.

    Rows are dicts with the columns of the tables ``jobs``, ``batches`` and ``job_events``.
    """

    def submit(self, jobs: Sequence[NewJob]) -> Accepted:
        """Accept jobs, all or none. Raises InvalidSubmit, which names the field."""

    def insert_batch(self, batch: NewBatch) -> dict[str, Any]: ...

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
        """The best due jobs; in no particular order among themselves."""

    def reserve(self, *, queue: str, worker_id: UUID, types: Sequence[str] | None = None) -> bool: ...

    def heartbeat(
        self, worker: WorkerIdentity, held: Sequence[tuple[UUID, int]], lease_seconds: float
    ) -> list[LostLease]: ...

    def leave(self, worker_id: UUID) -> None: ...

    def release_orphans(self, worker: WorkerIdentity, held: Sequence[UUID], lease_seconds: float) -> Moved: ...

    def progress(self, id: UUID, attempt: int, worker_id: UUID, percent: int, step: str) -> int | None: ...

    def log(self, id: UUID, attempt: int, worker_id: UUID, data: dict[str, Any]) -> int | None: ...

    def settle(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved: ...

    def settle_plain(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> Moved: ...

    def rescue(self, *, limit: int = 500, max_stalls: int = MAX_STALLS, max_crashes: int = MAX_CRASHES) -> Moved: ...

    def cancel(self, ids: Sequence[UUID], *, member_id: UUID | None, actor: str, reason: str | None) -> Moved: ...

    def cancel_batch(self, batch_id: UUID, *, member_id: UUID | None, actor: str, reason: str | None) -> Moved: ...

    def set_limit(self, limit: Limit) -> None: ...

    def pause(self, target: LimitTarget, *, actor: str, reason: str | None = None) -> None: ...

    def resume(self, target: LimitTarget) -> bool: ...

    def limits(self, queue: str | None = None) -> list[Limit]: ...

    def unhold(self) -> tuple[Wake, ...]: ...

    def due_queues(self) -> list[tuple[str, int, UUID]]: ...

    def get(self, id: UUID) -> dict[str, Any] | None:
        """The job's row, or None."""

    def get_batch(self, id: UUID) -> dict[str, Any] | None: ...

    def jobs(self) -> list[dict[str, Any]]:
        """Every job's row, in the order of their ids."""

    def events(self, id: UUID) -> list[Mapping[str, Any]]:
        """The job's events in the order of ``seq``."""

    def transaction(self) -> AbstractContextManager[Any]:
        """What is called inside, by this thread, commits together or not at all. Yields what effects are given."""
