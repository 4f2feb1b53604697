"""Limits on Postgres: many claimers at one time. What every store promises is test_store_contract_claim.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import NewJob, limits, store, submit
from shared.jobs.limits import EVERY, Limit, LimitTarget

WORKER = uuid4()
Make = Callable[..., NewJob]


@pytest.fixture
def make(org_id: UUID) -> Make:
    def new(**fields: object) -> NewJob:
        return NewJob(
            **{  # type: ignore[arg-type]
                "id": ids.new_uuid(),
                "type": OCR_DOCUMENT.name,
                "payload": {"document_id": str(uuid4()), "submission_id": str(uuid4())},
                "org_id": org_id,
                **fields,
            }
        )

    return new


def accept(pool: SyncPool, *jobs: NewJob) -> None:
    with pool.connection() as conn:
        submit(conn, jobs)


def claim(pool: SyncPool, limit: int = 100) -> store.Claims:
    with pool.connection() as conn:
        return store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30, limit=limit)


def limit(pool: SyncPool, *rules: Limit) -> None:
    with pool.connection() as conn:
        for rule in rules:
            limits.set_limit(conn, rule)


def test_a_sweep_lets_a_held_job_go_whose_key_came_free_unseen(pool: SyncPool, make: Make) -> None:
    accept(pool, make(concurrency_key="k"), make(concurrency_key="k"))
    [running] = claim(pool)
    with pool.connection() as conn:
        assert store.unhold(conn) == ()
        conn.execute("update jobs set status = 'completed' where id = %s", (running.id,))
        assert len(store.unhold(conn)) == 1
        assert store.unhold(conn) == ()
    assert len(claim(pool)) == 1


def test_claimers_at_once_do_not_exceed_a_limit(pool: SyncPool, make: Make) -> None:
    limit(pool, Limit(LimitTarget("ocr", EVERY), max_running=5))
    accept(pool, *[make(concurrency_key=f"k{n % 3}", concurrency_limit=2) for n in range(60)])
    with ThreadPoolExecutor(8) as threads:
        started = [job for claims in threads.map(lambda _: claim(pool, 2), range(24)) for job in claims]
    assert len(started) == 5
    keys = [job.concurrency_key for job in started]
    assert max(keys.count(key) for key in keys) <= 2
