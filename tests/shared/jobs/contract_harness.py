"""Both stores behind one set of tests: the calls in short, and time that passes at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import Moved, NewBatch, NewJob, Outcome, ParentEdge, Status
from shared.jobs.limits import Limit
from shared.jobs.store import Claims, WorkerIdentity
from shared.jobs.submit import Accepted
from shared.jobs.testing import JobStore, ManualClock, MemoryStore, PostgresStore

WORKER = uuid4()
ERROR = {"code": "document.encrypted", "message": "Locked."}

# Every column that says when something was, or will be: shifted back, time has passed.
_TIMES = {
    "jobs": "created_at run_at started_at finished_at next_retry_at cancelled_at lease_until",
    "job_events": "at",
    "batches": "created_at finished_at cancelled_at",
    "workers": "started_at seen_at",
    "queue_limits": "paused_at updated_at",
    "start_buckets": "filled_at",
}


class Harness:
    """A store, and what tests do with it."""

    name: str
    store: JobStore
    request: pytest.FixtureRequest | None = None

    def __init__(self) -> None:
        self.org_id = uuid4()

    def advance(self, seconds: float) -> None:
        raise NotImplementedError

    def now(self) -> datetime:
        """By the store's clock."""
        raise NotImplementedError

    def known_bug(self, what: str, *stores: str) -> None:
        """The rest of this test fails for now, in these stores; that it does not any more is a failure too."""
        if self.name in (stores or ("memory", "postgres")):
            assert self.request is not None
            self.request.applymarker(pytest.mark.xfail(reason=what, strict=True))

    # -- accepting

    def make(self, **fields: Any) -> NewJob:
        fields.setdefault("type", OCR_DOCUMENT.name)
        if fields["type"] == GRADING_QUIZ.name:
            payload = {"grading_id": str(uuid4()), "standard_id": str(uuid4()), "standard_version": 1}
        else:
            payload = {"document_id": str(uuid4())}
        return NewJob(**{"id": ids.new_uuid(), "org_id": self.org_id, "payload": payload, **fields})

    def child(self, *parents: NewJob, on_failure: Any = "fail", **fields: Any) -> NewJob:
        """Of the other queue, so that a claim of the parents' does not meet it."""
        edges = tuple(ParentEdge(parent.id, on_failure) for parent in parents)
        return self.make(**{"type": GRADING_QUIZ.name, "parents": edges, **fields})

    def accept(self, *jobs: NewJob) -> Accepted:
        return self.store.submit(jobs)

    def batch(self, total: int, **fields: Any) -> UUID:
        id = ids.new_uuid()
        self.store.insert_batch(
            NewBatch(**{"org_id": self.org_id, **fields}, id=id, created_by=None, kind="x", total=total)
        )
        return id

    # -- running

    def claim(
        self,
        limit: int = 1,
        *,
        queue: str = "ocr",
        lease: float = 30,
        worker: UUID = WORKER,
        types: Sequence[str] | None = None,
        alone: bool = False,
    ) -> Claims:
        return self.store.claim(
            queue=queue, worker_id=worker, lease_seconds=lease, limit=limit, types=types, alone=alone
        )

    def order(self, most: int, queue: str = "ocr") -> list[UUID]:
        """The ids of the next jobs as one claimer after another gets them."""
        found = (self.claim(queue=queue) for _ in range(most))
        return [claims[0].id for claims in found if claims]

    def settle(self, *outcomes: Outcome) -> Moved:
        return self.store.settle(WORKER, outcomes)

    def complete(self, *jobs: Any) -> Moved:
        return self.settle(*(Outcome.completed(job, {}) for job in jobs))

    def fail(self, *jobs: Any) -> Moved:
        return self.settle(*(Outcome.failed(job, ERROR) for job in jobs))

    def beat(self, *held: Any, worker: UUID = WORKER, lease: float = 15) -> Any:
        identity = WorkerIdentity(worker, "ocr", "here", 1, 3)
        return self.store.heartbeat(identity, [(job.id, job.attempt) for job in held], lease)

    def rescue(self) -> Moved:
        return self.store.rescue()

    def crash(self, times: int, *, alone: bool = False) -> None:
        """So many processes die, one after another, each with the one job it has claimed."""
        for _ in range(times):
            assert self.claim(lease=-1, alone=alone, worker=uuid4())
            self.rescue()

    def cancel(self, *ids: UUID, member: UUID | None = None) -> Moved:
        return self.store.cancel(ids, member_id=member, actor="member:x", reason="changed my mind")

    def limit(self, *rules: Limit) -> None:
        for rule in rules:
            self.store.set_limit(rule)

    # -- looking

    def row(self, id: UUID) -> dict[str, Any]:
        found = self.store.get(id)
        assert found is not None
        return found

    def status(self, id: UUID) -> Status:
        return Status(self.row(id)["status"])

    def events(self, id: UUID) -> list[Any]:
        events = self.store.events(id)
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), "sequence numbers have no gap"
        assert self.row(id)["event_seq"] == len(events), "the job knows its last event"
        return events

    def kinds(self, id: UUID) -> list[str]:
        return [e["kind"] for e in self.events(id)]

    def counters(self, batch_id: UUID) -> tuple[int, int, int, bool]:
        """Completed, failed, cancelled; and has it finished?"""
        batch = self.store.get_batch(batch_id)
        assert batch is not None
        return batch["completed"], batch["failed"], batch["cancelled"], batch["finished_at"] is not None


class MemoryHarness(Harness):
    name = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.memory = MemoryStore(clock=self.clock)
        self.store = self.memory

    def advance(self, seconds: float) -> None:
        self.clock.move_on(seconds)

    def now(self) -> datetime:
        with self.memory.transaction():
            return self.memory._tables.now()  # a little ahead of the clock: no two calls happen at one time


class PostgresHarness(Harness):
    name = "postgres"

    def __init__(self, pool: SyncPool) -> None:
        super().__init__()
        self.pool = pool
        self.store = PostgresStore(pool)

    def advance(self, seconds: float) -> None:
        with self.pool.connection() as conn, conn.transaction():
            for table, columns in _TIMES.items():
                shifts = ", ".join(f"{c} = {c} - make_interval(secs => %(by)s)" for c in columns.split())
                conn.execute(f"update {table} set {shifts}", {"by": seconds})

    def clear(self) -> None:
        with self.pool.connection() as conn:
            conn.execute(f"truncate job_dependencies, {', '.join(_TIMES)}")

    def now(self) -> datetime:
        with self.pool.connection() as conn:
            row = conn.execute("select now() as now").fetchone()
        assert row is not None
        return row["now"]
