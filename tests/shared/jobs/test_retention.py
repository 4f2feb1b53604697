"""How long ended jobs are kept, what stays with what needs it, and that many may delete at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.db import SyncPool
from shared.ids import new_uuid
from shared.jobs import (
    NewBatch,
    NewJob,
    Outcome,
    ParentEdge,
    Status,
    insert_batch,
    redrive,
    store,
    submit,
)
from shared.jobs.retention import (
    Keep,
    prune_batches,
    prune_idempotency_keys,
    prune_jobs,
    prune_jobs_beyond_count,
    prune_start_buckets,
    prune_workers,
)

WORKER = uuid4()
KEEP = Keep()
Ended = Callable[..., UUID]


def aged(hours: float) -> UUID:
    """An id as it was made so long ago."""
    return UUID(int=new_uuid().int - (int(hours * 3_600_000) << 80))


def job(org_id: UUID, hours: float = 0, **fields: Any) -> NewJob:
    return NewJob(
        **{
            "id": aged(hours),
            "type": "ocr.document",
            "payload": {"document_id": str(uuid4())},
            "org_id": org_id,
            **fields,
        }
    )


def end(pool: SyncPool, status: Status, *jobs: NewJob, hours: float) -> None:
    """The jobs run and end so, as long ago as that."""
    with pool.connection() as conn, conn.transaction():
        submit(conn, jobs)
        if status is Status.CANCELLED:
            store.cancel(conn, [j.id for j in jobs], member_id=None, actor="member:x", reason=None)
        elif status in (Status.COMPLETED, Status.FAILED):
            claimed = store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30, limit=len(jobs))
            error = {"code": "x.y", "message": "z"}
            done = status is Status.COMPLETED
            store.settle(
                conn, WORKER, [Outcome.completed(c, {}) if done else Outcome.failed(c, error) for c in claimed]
            )
        age(conn, hours)


def age(conn: Any, hours: float) -> None:
    conn.execute(
        """update jobs set finished_at = now() - make_interval(secs => %s)
            where finished_at > now() - interval '1 minute'""",
        (hours * 3600,),
    )


@pytest.fixture
def ended(pool: SyncPool, org_id: UUID) -> Ended:
    def one(status: Status, hours: float, **fields: Any) -> UUID:
        new = job(fields.pop("org_id", org_id), hours, **fields)
        end(pool, status, new, hours=hours)
        return new.id

    return one


def left(pool: SyncPool) -> set[UUID]:
    with pool.connection() as conn:
        return {r["id"] for r in conn.execute("select id from jobs").fetchall()}


def prune(pool: SyncPool, keep: Keep = KEEP) -> int:
    total = 0
    with pool.connection() as conn:
        while went := prune_jobs(conn, keep) + prune_jobs_beyond_count(conn, keep):
            total += went
    return total


class TestAge:
    def test_each_kind_of_end_has_its_time(self, pool: SyncPool, ended: Ended) -> None:
        young = {ended(status, 23) for status in (Status.COMPLETED, Status.CANCELLED, Status.FAILED)}
        for status in (Status.COMPLETED, Status.CANCELLED):
            ended(status, 25)
        dead = ended(Status.FAILED, 160)
        ended(Status.FAILED, 170)
        assert prune(pool) == 3
        assert left(pool) == {*young, dead}
        assert prune(pool) == 0

    def test_what_has_not_ended_stays_however_old(self, pool: SyncPool, org_id: UUID) -> None:
        queued, parent = job(org_id, 1000), job(org_id, 1000)
        waiting = job(org_id, 1000, parents=(ParentEdge(parent.id),))
        end(pool, Status.QUEUED, queued, parent, waiting, hours=0)
        assert prune(pool) == 0

    def test_a_job_that_was_accepted_long_ago_and_ended_just_now_stays(self, pool: SyncPool, org_id: UUID) -> None:
        end(pool, Status.COMPLETED, job(org_id, 1000), hours=1)
        assert prune(pool) == 0

    def test_an_organisation_has_its_own_time(self, pool: SyncPool, ended: Ended, org_id: UUID) -> None:
        long = uuid4()
        with pool.connection() as conn:
            conn.execute("insert into organisations (id, name, job_retention_hours) values (%s, 'Long', 1000)", (long,))
            conn.execute("update organisations set job_retention_hours = 2 where id = %s", (org_id,))
        kept = {ended(Status.COMPLETED, 900, org_id=long), ended(Status.FAILED, 900, org_id=long)}
        ended(Status.COMPLETED, 3)
        dead = ended(Status.FAILED, 3)
        assert prune(pool) == 1
        assert left(pool) == {*kept, dead}, "dead letters are kept no shorter than the deployment says"

    @pytest.mark.parametrize("hours", [2**31 - 1, -(2**31)])
    def test_an_absurd_time_breaks_nothing(self, pool: SyncPool, ended: Ended, org_id: UUID, hours: int) -> None:
        with pool.connection() as conn:
            conn.execute("update organisations set job_retention_hours = %s", (hours,))
        ended(Status.COMPLETED, 3)
        assert prune(pool) == (0 if hours > 0 else 1)

    def test_events_and_edges_go_with_their_job(self, pool: SyncPool, org_id: UUID) -> None:
        parent = job(org_id, 30)
        child = job(org_id, 30, parents=(ParentEdge(parent.id),))
        end(pool, Status.CANCELLED, parent, child, hours=30)
        assert prune(pool) == 2
        with pool.connection() as conn:
            for table in ("jobs", "job_events", "job_dependencies"):
                assert conn.execute(f"select count(*) as n from {table}").fetchone() == {"n": 0}, table

    def test_notifications_have_their_time_before_their_job_goes(
        self, pool: SyncPool, ended: Ended, org_id: UUID
    ) -> None:
        with pool.connection() as conn:
            conn.execute("update organisations set job_retention_hours = 0")
        told = ended(Status.COMPLETED, 1, webhook_url="https://app.example/h")
        ended(Status.COMPLETED, 1)
        assert prune(pool) == 1
        assert told in left(pool)
        with pool.connection() as conn:
            conn.execute("update jobs set finished_at = now() - interval '3 hours' where id = %s", (told,))
        assert prune(pool) == 1


class TestWhatIsNeeded:
    def test_a_parent_stays_while_a_child_waits_and_goes_when_that_has_ended(
        self, pool: SyncPool, org_id: UUID
    ) -> None:
        parent, other = job(org_id, 30), job(org_id, 29)
        child = job(org_id, 30, parents=(ParentEdge(parent.id), ParentEdge(other.id)))
        with pool.connection() as conn, conn.transaction():
            submit(conn, [parent, other, child])
            [claimed] = store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30)
            store.settle(conn, WORKER, [Outcome.completed(claimed, {})])
            age(conn, 30)
        assert prune(pool) == 0
        with pool.connection() as conn, conn.transaction():
            store.cancel(conn, [child.id, other.id], member_id=None, actor="member:x", reason=None)
        assert prune(pool) == 1
        assert left(pool) == {other.id, child.id}

    def test_a_child_accepted_while_its_parent_is_looked_at_keeps_it(self, pool: SyncPool, ended: Ended) -> None:
        for _ in range(15):
            org = uuid4()
            parent = ended(Status.COMPLETED, 30, org_id=org)
            child = job(org, parents=(ParentEdge(parent),))

            def add(child: NewJob = child) -> bool:
                try:
                    with pool.connection() as conn, conn.transaction():
                        submit(conn, [child])
                except ValueError:  # it has gone
                    return False
                return True

            with ThreadPoolExecutor(2) as threads:
                pruned, added = threads.submit(prune, pool), threads.submit(add)
                assert (pruned.result() == 1) != added.result()
            with pool.connection() as conn:
                conn.execute("delete from jobs")

    def test_jobs_of_an_unfinished_batch_stay_and_then_go_before_it(self, pool: SyncPool, org_id: UUID) -> None:
        batch_id = aged(30)
        with pool.connection() as conn:
            insert_batch(conn, NewBatch(batch_id, org_id, None, "upload", 2))
            conn.execute("update batches set created_at = now() - interval '30 hours'")
        end(pool, Status.COMPLETED, job(org_id, 30, batch_id=batch_id), hours=30)
        with pool.connection() as conn:
            assert (prune(pool), prune_batches(conn, KEEP)) == (0, 0)
        end(pool, Status.COMPLETED, job(org_id, 30, batch_id=batch_id), hours=30)
        with pool.connection() as conn:
            conn.execute("update batches set finished_at = now() - interval '25 hours'")
            assert prune_batches(conn, KEEP) == 0, "its jobs are still there"
            assert prune(pool) == 2
            assert prune_batches(conn, KEEP) == 1

    def test_what_comes_back_with_a_dead_letter_is_kept_as_long_as_that(self, pool: SyncPool, org_id: UUID) -> None:
        parent = job(org_id, 30)
        child = job(org_id, 30, parents=(ParentEdge(parent.id, "cancel"),))
        with pool.connection() as conn, conn.transaction():
            submit(conn, [parent, child])
            [claimed] = store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30)
            store.settle(conn, WORKER, [Outcome.failed(claimed, {"code": "x", "message": "y"})])
            age(conn, 30)
        assert prune(pool) == 0
        with pool.connection() as conn, conn.transaction():
            assert len(redrive(conn, [parent.id], actor="member:x").jobs) == 2
            store.cancel(conn, [parent.id], member_id=None, actor="member:x", reason=None)
            age(conn, 30)
        assert prune(pool) == 2


class TestCount:
    def test_the_newest_are_kept_and_dead_letters_do_not_count(self, pool: SyncPool, ended: Ended) -> None:
        jobs = [ended(Status.COMPLETED if n % 2 else Status.CANCELLED, 10 - n) for n in range(6)]
        dead = ended(Status.FAILED, 20)
        assert prune(pool, Keep(count=4)) == 2
        assert left(pool) == {*jobs[2:], dead}

    def test_an_organisation_has_its_own_count(self, pool: SyncPool, ended: Ended, org_id: UUID) -> None:
        other = uuid4()
        with pool.connection() as conn:
            conn.execute("update organisations set job_retention_count = 1 where id = %s", (org_id,))
        kept = {ended(Status.COMPLETED, 5, org_id=other) for _ in range(3)}
        for hours in (3, 2):
            ended(Status.COMPLETED, hours)
        newest = ended(Status.COMPLETED, 1)
        assert prune(pool) == 2
        assert left(pool) == {*kept, newest}


class TestTogether:
    def test_eight_at_once_delete_each_job_once(self, pool: SyncPool, org_id: UUID) -> None:
        end(pool, Status.COMPLETED, *(job(org_id, 30) for _ in range(1500)), hours=30)
        with ThreadPoolExecutor(6) as threads:
            assert sum(threads.map(lambda _: prune(pool), range(8))) + prune(pool) == 1500
        assert left(pool) == set()

    def test_nobody_waits_for_a_row_that_another_holds(self, pool: SyncPool, ended: Ended) -> None:
        held, free = ended(Status.COMPLETED, 30), ended(Status.COMPLETED, 30)
        with pool.connection() as conn, conn.transaction():
            conn.execute("select from jobs where id = %s for update", (held,))
            assert prune(pool) == 1
        assert left(pool) == {held}
        assert free != held


def test_idempotency_keys_are_kept_for_a_day_at_least(pool: SyncPool, org_id: UUID) -> None:
    with pool.connection() as conn:
        for hours in (23, 25):
            conn.execute(
                """insert into idempotency_keys (org_id, member_id, key, request_hash, resource_id, created_at)
                   values (%s, %s, %s, '', %s, now() - make_interval(hours => %s))""",
                (org_id, uuid4(), str(hours), uuid4(), hours),
            )
        assert prune_idempotency_keys(conn, Keep(hours=1)) == 1
        assert conn.execute("select key from idempotency_keys").fetchall() == [{"key": "23"}]


def test_start_buckets_go_when_they_are_full_anyhow(pool: SyncPool) -> None:
    with pool.connection() as conn:
        conn.execute(
            """insert into queue_limits (queue, scope, start_limit, start_period) values ('slow', 'queue', 1, 604800);
               insert into start_buckets (queue, scope, tokens, filled_at) values
                 ('ocr', 'queue', 0, now() - interval '2 days'), ('grading', 'queue', 0, now()),
                 ('slow', 'queue', 0, now() - interval '2 days')"""
        )
        assert prune_start_buckets(conn) == 1
        assert {r["queue"] for r in conn.execute("select queue from start_buckets")} == {"grading", "slow"}


def test_workers_of_a_database_that_was_away_are_not_forgotten(pool: SyncPool) -> None:
    with pool.connection() as conn:
        conn.execute(
            """insert into workers (id, queue, host, pid, concurrency, seen_at)
               values (gen_random_uuid(), 'ocr', 'h', 1, 3, now() - interval '2 hours')"""
        )
        assert prune_workers(conn, settle_seconds=1e9) == 0, "the server was started within that time"
        assert prune_workers(conn, settle_seconds=0) == 1
