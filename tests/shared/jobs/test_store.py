"""What only Postgres can be asked: many workers at one time. What every store promises is test_store_contract*.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import (
    NewJob,
    Outcome,
    ParentEdge,
    Status,
    store,
    submit,
)

WORKER = uuid4()
Make = Callable[..., NewJob]


@pytest.fixture
def make(org_id: UUID) -> Make:
    def new(**fields: Any) -> NewJob:
        fields.setdefault("type", OCR_DOCUMENT.name)
        if fields["type"] == OCR_DOCUMENT.name:
            fields.setdefault("payload", {"document_id": str(uuid4())})
        else:
            fields.setdefault(
                "payload", {"grading_id": str(uuid4()), "standard_id": str(uuid4()), "standard_version": 1}
            )
        return NewJob(**{"id": ids.new_uuid(), "org_id": org_id, **fields})

    return new


def accept(pool: SyncPool, *jobs: NewJob) -> None:
    with pool.connection() as conn, conn.transaction():
        submit(conn, jobs)


def claim(pool: SyncPool, limit: int = 1, *, queue: str = "ocr", lease: float = 30) -> Any:
    with pool.connection() as conn:
        return store.claim(conn, queue=queue, worker_id=WORKER, lease_seconds=lease, limit=limit)


def settle(pool: SyncPool, *outcomes: Outcome) -> Any:
    with pool.connection() as conn, conn.transaction():
        return store.settle(conn, WORKER, outcomes)


def rescue(pool: SyncPool) -> Any:
    with pool.connection() as conn, conn.transaction():
        return store.rescue(conn, settle_seconds=0)


def row(pool: SyncPool, id: UUID) -> dict[str, Any]:
    with pool.connection() as conn:
        found = conn.execute("select * from jobs where id = %s", (id,)).fetchone()
    assert found is not None
    return found


def test_twenty_claimers_share_a_hundred_jobs_without_overlap(pool: SyncPool, make: Make) -> None:
    jobs = [make() for _ in range(100)]
    accept(pool, *jobs)

    def drain(_: int) -> list[UUID]:
        got = []
        while mine := claim(pool, 3):
            got += [c.id for c in mine]
        return got

    with ThreadPoolExecutor(20) as threads:
        claimed = [id for part in threads.map(drain, range(20)) for id in part]
    assert sorted(claimed) == sorted(j.id for j in jobs)


def test_two_rescuers_at_once_charge_a_stall_once(pool: SyncPool, make: Make) -> None:
    jobs = [make() for _ in range(30)]
    accept(pool, *jobs)
    claim(pool, 30, lease=-1)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: len(rescue(pool).jobs), range(4)))
    assert sum(found) == 30
    assert {row(pool, j.id)["crash_count"] for j in jobs} == {1}


def test_a_child_accepted_while_its_parent_ends_is_not_left_waiting(pool: SyncPool, make: Make) -> None:
    for _ in range(20):
        parent = make()
        accept(pool, parent)
        [claimed] = claim(pool)
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        with ThreadPoolExecutor(2) as threads:
            ended = threads.submit(settle, pool, Outcome.completed(claimed, {}))
            added = threads.submit(accept, pool, child)
            ended.result()
            added.result()
        assert row(pool, child.id)["status"] == Status.QUEUED
