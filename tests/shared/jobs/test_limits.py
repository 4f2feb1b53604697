"""Pauses, start limits and concurrency limits, as the claim keeps them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import NewJob, Outcome, Priority, limits, store, submit
from shared.jobs.limits import EVERY, Limit, LimitTarget

WORKER = uuid4()
QUEUE = LimitTarget("ocr")
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


def finish(pool: SyncPool, *jobs: object) -> tuple[UUID, ...]:
    with pool.connection() as conn, conn.transaction():
        moved = store.settle(conn, WORKER, [Outcome.completed(job, {}) for job in jobs])  # type: ignore[arg-type]
    return tuple(wake.job_id for wake in moved.wakes)


def limit(pool: SyncPool, *rules: Limit) -> None:
    with pool.connection() as conn:
        for rule in rules:
            limits.set_limit(conn, rule)


def age_buckets(pool: SyncPool, seconds: float) -> None:
    with pool.connection() as conn:
        conn.execute("update start_buckets set filled_at = filled_at - make_interval(secs => %s)", (seconds,))


class TestPause:
    @pytest.mark.parametrize("whose", ["queue", "organisation", "every organisation", "key"])
    def test_nothing_starts_while_paused_and_all_does_after(
        self, pool: SyncPool, make: Make, org_id: UUID, whose: str
    ) -> None:
        target = {
            "queue": QUEUE,
            "organisation": LimitTarget("ocr", org_id),
            "every organisation": LimitTarget("ocr", EVERY),
            "key": LimitTarget("ocr", org_id, "k"),
        }[whose]
        accept(pool, make(concurrency_key="k"))
        with pool.connection() as conn:
            limits.pause(conn, target, actor="member:x", reason="too hot")
        assert list(claim(pool)) == []
        with pool.connection() as conn:
            [stored] = limits.limits(conn, "ocr")
            assert (stored.target, stored.paused_by, stored.pause_reason) == (target, "member:x", "too hot")
            assert limits.resume(conn, target)
            assert not limits.resume(conn, target)
            assert limits.limits(conn) == []
            store.unhold(conn)
        assert len(claim(pool)) == 1

    def test_a_pause_of_one_organisation_leaves_the_others(self, pool: SyncPool, make: Make, org_id: UUID) -> None:
        other = make(org_id=uuid4())
        accept(pool, make(), other)
        with pool.connection() as conn:
            limits.pause(conn, LimitTarget("ocr", org_id), actor="member:x")
        assert [job.id for job in claim(pool)] == [other.id]


class TestConcurrency:
    def test_a_queue_runs_no_more_than_it_may(self, pool: SyncPool, make: Make) -> None:
        limit(pool, Limit(QUEUE, max_running=2))
        accept(pool, *[make() for _ in range(5)])
        first = claim(pool)
        assert len(first) == 2
        assert list(claim(pool)) == []
        finish(pool, first[0])
        assert len(claim(pool)) == 1

    def test_each_organisation_runs_no_more_than_it_may_and_one_of_them_less(self, pool: SyncPool, make: Make) -> None:
        small, large = uuid4(), uuid4()
        limit(
            pool,
            Limit(LimitTarget("ocr", EVERY), max_running=3),
            Limit(LimitTarget("ocr", small), max_running=1),
        )
        accept(pool, *[make(org_id=org) for org in (small, large) for _ in range(5)])
        started = [job.org_id for job in claim(pool)]
        assert (started.count(small), started.count(large)) == (1, 3)

    def test_a_key_runs_as_many_as_its_jobs_say_per_organisation(self, pool: SyncPool, make: Make) -> None:
        other = uuid4()
        jobs = [make(concurrency_key="pupil-7", concurrency_limit=2) for _ in range(5)]
        accept(pool, *jobs, make(org_id=other, concurrency_key="pupil-7"))
        assert {job.id for job in claim(pool)} >= {jobs[0].id, jobs[1].id}
        assert list(claim(pool)) == []

    def test_jobs_behind_a_taken_key_are_not_held_up(self, pool: SyncPool, make: Make) -> None:
        blocked = [make(concurrency_key="k") for _ in range(80)]
        free = make()
        accept(pool, *blocked, free)
        assert [job.id for job in claim(pool, 1)] == [blocked[0].id]
        assert [job.id for job in claim(pool, 1)] == [free.id]

    def test_the_best_of_a_keys_jobs_is_next_when_the_key_comes_free(self, pool: SyncPool, make: Make) -> None:
        jobs = [make(concurrency_key="k") for _ in range(3)]
        urgent = make(concurrency_key="k", priority=Priority.HIGH)
        accept(pool, *jobs)
        [running] = claim(pool)
        accept(pool, urgent)
        assert list(claim(pool)) == []
        assert finish(pool, running) == (urgent.id,)
        assert [job.id for job in claim(pool)] == [urgent.id]

    def test_a_sweep_lets_a_held_job_go_whose_key_came_free_unseen(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make(concurrency_key="k"), make(concurrency_key="k"))
        [running] = claim(pool)
        with pool.connection() as conn:
            assert store.unhold(conn) == ()
            conn.execute("update jobs set status = 'completed' where id = %s", (running.id,))
            assert len(store.unhold(conn)) == 1
            assert store.unhold(conn) == ()
        assert len(claim(pool)) == 1

    def test_claimers_at_once_do_not_exceed_a_limit(self, pool: SyncPool, make: Make) -> None:
        limit(pool, Limit(LimitTarget("ocr", EVERY), max_running=5))
        accept(pool, *[make(concurrency_key=f"k{n % 3}", concurrency_limit=2) for n in range(60)])
        with ThreadPoolExecutor(8) as threads:
            started = [job for claims in threads.map(lambda _: claim(pool, 2), range(24)) for job in claims]
        assert len(started) == 5
        keys = [job.concurrency_key for job in started]
        assert max(keys.count(key) for key in keys) <= 2

    def test_a_rule_for_a_key_overrides_what_its_jobs_say(self, pool: SyncPool, make: Make, org_id: UUID) -> None:
        limit(pool, Limit(LimitTarget("ocr", org_id, "k"), max_running=3))
        accept(pool, *[make(concurrency_key="k") for _ in range(5)])
        assert len(claim(pool)) == 3


class TestStartRate:
    @pytest.mark.parametrize("whose", ["queue", "organisation", "key"])
    def test_starts_keep_to_their_number_in_a_period(
        self, pool: SyncPool, make: Make, org_id: UUID, whose: str
    ) -> None:
        target = {"queue": QUEUE, "organisation": LimitTarget("ocr", EVERY), "key": LimitTarget("ocr", EVERY, "")}[whose]
        limit(pool, Limit(target, start_limit=3, start_period=60, max_running=100))
        accept(pool, *[make(concurrency_key="k", concurrency_limit=100) for _ in range(10)])
        assert len(claim(pool)) == 3
        assert list(claim(pool)) == []
        age_buckets(pool, 20)
        with pool.connection() as conn:
            store.unhold(conn)
        assert len(claim(pool)) == 1
        assert list(claim(pool)) == []

    def test_a_claimer_is_told_when_the_next_start_is_due(self, pool: SyncPool, make: Make) -> None:
        limit(pool, Limit(QUEUE, start_limit=1, start_period=10))
        accept(pool, make(), make())
        assert len(claim(pool)) == 1
        wait = claim(pool).wait
        assert wait is not None
        assert 8 < wait <= 10

    def test_one_organisations_rate_leaves_the_others(self, pool: SyncPool, make: Make) -> None:
        slow = uuid4()
        limit(pool, Limit(LimitTarget("ocr", slow), start_limit=1, start_period=60))
        accept(pool, *[make(org_id=slow) for _ in range(3)], *[make() for _ in range(3)])
        assert len(claim(pool)) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_running": -1}, "max_running"),
        ({"start_limit": 5}, "go together"),
        ({"start_limit": 0, "start_period": 1.0}, "start_limit"),
        ({"start_limit": 1, "start_period": 0.0}, "start_period"),
    ],
)
def test_numbers_that_are_no_limit_are_refused(pool: SyncPool, fields: dict[str, float], message: str) -> None:
    with pool.connection() as conn, pytest.raises(ValueError, match=message):
        limits.set_limit(conn, Limit(QUEUE, **fields))  # type: ignore[arg-type]
