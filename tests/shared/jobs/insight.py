"""What the tests of why, attempts, lists and figures do to jobs."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import ClaimedJob, NewJob, Outcome, store, submit
from shared.jobs.store import WorkerIdentity

WORKER = uuid4()


class Desk:
    """A school's jobs, and a worker that does them."""

    def __init__(self, pool: SyncPool, org_id: UUID) -> None:
        self.pool = pool
        self.org_id = org_id

    def new(self, **fields: Any) -> NewJob:
        fields.setdefault("type", OCR_DOCUMENT.name)
        payload = (
            {"document_id": str(uuid4())}
            if fields["type"] == OCR_DOCUMENT.name
            else {"grading_id": str(uuid4()), "standard_id": str(uuid4()), "standard_version": 1}
        )
        return NewJob(**{"id": ids.new_uuid(), "org_id": self.org_id, "payload": payload, **fields})

    def grading(self, **fields: Any) -> NewJob:
        return self.new(type=GRADING_QUIZ.name, **fields)

    def accept(self, *jobs: NewJob) -> None:
        with self.pool.connection() as conn, conn.transaction():
            submit(conn, jobs)

    def add(self, **fields: Any) -> UUID:
        job = self.new(**fields)
        self.accept(job)
        return job.id

    def worker(self, id: UUID = WORKER, **fields: Any) -> None:
        with self.pool.connection() as conn:
            known = {"queue": "ocr", "host": "room-1", "pid": 4711, "concurrency": 3, **fields}
            store.heartbeat(conn, WorkerIdentity(id, **known), [], 15)

    def claim(self, limit: int = 1, *, worker: UUID = WORKER) -> list[ClaimedJob]:
        with self.pool.connection() as conn:
            return store.claim(conn, queue="ocr", worker_id=worker, lease_seconds=15, limit=limit)

    def settle(self, *outcomes: Outcome) -> None:
        with self.pool.connection() as conn, conn.transaction():
            assert len(store.settle(conn, WORKER, outcomes).ids) == len(outcomes)

    def sql(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with self.pool.connection() as conn:
            cursor = conn.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def other_school(self) -> Desk:
        other = Desk(self.pool, uuid4())
        self.sql("insert into organisations (id, name) values (%(id)s, 'Other School')", id=other.org_id)
        return other

    def member(self, role: str = "member") -> UUID:
        id = ids.new_uuid()
        self.sql(
            "insert into members (id, org_id, email, name, role) values (%(id)s, %(org)s, %(mail)s, 'A Person', %(r)s)",
            id=id, org=self.org_id, mail=f"{id}@school.example", r=role,
        )  # fmt: skip
        return id


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a plan, as EXPLAIN (FORMAT JSON) tells them."""
    return [plan, *(n for child in plan.get("Plans", ()) for n in nodes(child))]


def fill(pool: SyncPool, org_id: UUID, rows: int, *, created_by: UUID | None = None, **columns: str) -> None:
    """Many rows at once; ``columns`` are SQL over ``g``, 1 (the oldest) to ``rows``."""
    values = {
        "type": f"'{OCR_DOCUMENT.name}'",
        "status": "'queued'",
        "priority": "1",
        "run_at": f"now() - make_interval(secs => ({rows} - g) * 0.001)",
        "finished_at": "null",
        **columns,
    }
    # The id's first 48 bits are its milliseconds: one job a millisecond.
    stamp = f"lpad(to_hex((extract(epoch from now()) * 1000)::bigint - {rows} + g), 12, '0')"
    id = f"(left({stamp}, 8) || '-' || right({stamp}, 4) || substring(gen_random_uuid()::text from 14))::uuid"
    with pool.connection() as conn:
        conn.execute(
            f"""
            insert into jobs (id, org_id, created_by, type, queue, status, priority, max_retries, time_limit, run_at,
                              created_at, started_at, finished_at, payload)
            select {id}, %(org_id)s, %(created_by)s, {values["type"]}, 'ocr', {values["status"]},
                   ({values["priority"]})::smallint, 2, 60, {values["run_at"]},
                   now() - make_interval(secs => ({rows} - g) * 0.001), {values["finished_at"]}::timestamptz,
                   {values["finished_at"]}::timestamptz, '{{}}'
              from generate_series(1, {rows}) g
            """,
            {"org_id": org_id, "created_by": created_by},
        )


@pytest.fixture
def desk(pool: SyncPool, org_id: UUID) -> Desk:
    return Desk(pool, org_id)
