"""Running ended jobs once more: what is reset, what waits again, and what two people at once cannot break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.db import SyncPool, open_async_pool
from shared.jobs import (
    NewBatch,
    NewJob,
    Outcome,
    ParentEdge,
    Redriven,
    Status,
    Unique,
    insert_batch,
    redrive,
    redrive_async,
    store,
    submit,
)

WORKER = uuid4()
ERROR = {"code": "document.encrypted", "message": "Locked."}
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


def claim(pool: SyncPool, limit: int = 1, *, queue: str = "ocr") -> Any:
    with pool.connection() as conn:
        return store.claim(conn, queue=queue, worker_id=WORKER, lease_seconds=30, limit=limit)


def settle(pool: SyncPool, *outcomes: Outcome) -> Any:
    with pool.connection() as conn, conn.transaction():
        return store.settle(conn, WORKER, outcomes)


def fail(pool: SyncPool, limit: int = 1, *, queue: str = "ocr") -> None:
    claimed = claim(pool, limit, queue=queue)
    assert len(claimed) == limit
    settle(pool, *(Outcome.failed(c, ERROR) for c in claimed))


def cancel(pool: SyncPool, *wanted: UUID) -> None:
    with pool.connection() as conn, conn.transaction():
        store.cancel(conn, wanted, member_id=uuid4(), actor="member:x", reason=None)


def again(pool: SyncPool, *wanted: UUID, **options: Any) -> Redriven:
    with pool.connection() as conn, conn.transaction():
        return redrive(conn, wanted, actor="member:someone", **options)


def row(pool: SyncPool, id: UUID) -> dict[str, Any]:
    with pool.connection() as conn:
        found = conn.execute("select * from jobs where id = %s", (id,)).fetchone()
    assert found is not None
    return found


def events(pool: SyncPool, id: UUID) -> list[dict[str, Any]]:
    with pool.connection() as conn:
        rows = conn.execute("select * from job_events where job_id = %s order by seq", (id,)).fetchall()
    assert [r["seq"] for r in rows] == list(range(1, len(rows) + 1)), "sequence numbers have no gap"
    return rows


def reasons(answer: Redriven) -> dict[UUID, str]:
    return {s.id: s.code for s in answer.skipped}


class TestOneJob:
    def test_a_failed_job_starts_from_the_beginning_but_its_fence_goes_on(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        settle(pool, Outcome.retry(claim(pool)[0], ERROR, delay=0))
        fail(pool)
        with pool.connection() as conn:
            conn.execute("update jobs set stall_count = 2, crash_count = 2, hold = 2, step = 'x', progress = 50")
        answer = again(pool, job.id)
        assert answer.jobs == ((job.id, Status.QUEUED),)
        assert [w.job_id for w in answer.wakes] == [job.id]
        stored = row(pool, job.id)
        zero = ("retry_count", "stall_count", "crash_count", "hold", "progress")
        assert [stored[name] for name in zero] == [0] * len(zero)
        gone = ("error", "finished_at", "next_retry_at", "cancelled_at", "cancelled_by", "step", "lease_until")
        assert [stored[name] for name in gone] == [None] * len(gone)
        assert claim(pool)[0].attempt == 3, "the fence goes on: an old attempt can never pass for a new one"
        event = events(pool, job.id)[-2]
        assert (event["kind"], event["actor"]) == ("redriven", "member:someone")
        assert event["data"] == {"previous_error": "document.encrypted"}

    def test_a_cancelled_job_can_be_redriven(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        cancel(pool, job.id)
        assert again(pool, job.id).jobs == ((job.id, Status.QUEUED),)

    def test_a_delay_keeps_it_for_later(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        fail(pool)
        assert again(pool, job.id, delays={job.id: 60.0}).wakes == ()
        assert row(pool, job.id)["run_at"] > datetime.now(UTC) + timedelta(seconds=50)

    def test_what_has_not_failed_is_left_alone(self, pool: SyncPool, make: Make) -> None:
        done, running, queued, unknown = make(), make(), make(), uuid4()
        accept(pool, done)
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        accept(pool, running)
        claim(pool)
        accept(pool, queued)
        answer = again(pool, done.id, running.id, queued.id, unknown)
        assert answer.jobs == ()
        assert reasons(answer) == {
            done.id: "job.not_failed",
            running.id: "job.not_ended",
            queued.id: "job.not_ended",
            unknown: "job.not_found",
        }
        assert all(s.message for s in answer.skipped)

    def test_a_changed_payload_leaves_names_in_the_event_and_no_values(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        fail(pool)
        new = str(uuid4())
        again(pool, job.id, payloads={job.id: {**row(pool, job.id)["payload"], "document_id": new}})
        assert row(pool, job.id)["payload"]["document_id"] == new
        event = events(pool, job.id)[-1]
        assert event["data"]["changed"] == ["document_id"]
        assert new not in str(event["data"])

    def test_twenty_people_at_once_redrive_it_once(self, pool: SyncPool, make: Make) -> None:
        jobs = [make() for _ in range(10)]
        accept(pool, *jobs)
        fail(pool, 10)
        with ThreadPoolExecutor(8) as threads:
            moved = list(threads.map(lambda _: len(again(pool, *(j.id for j in jobs)).jobs), range(20)))
        assert sum(moved) == 10
        assert all(len(events(pool, j.id)) == 4 for j in jobs)

    def test_it_works_on_an_event_loop(self, pool: SyncPool, make: Make, database_url: str) -> None:
        job = make()
        accept(pool, job)
        fail(pool)

        async def go() -> Redriven:
            async with (
                await open_async_pool(database_url, size=1, application_name="test") as apool,
                apool.connection() as conn,
                conn.transaction(),
            ):
                return await redrive_async(conn, [job.id], actor="member:x")

        assert asyncio.run(go()).redriven == (job.id,)


class TestUniqueKeys:
    def test_a_job_whose_key_is_taken_stays_dead(self, pool: SyncPool, make: Make) -> None:
        dead = make(unique=Unique("daily"))
        accept(pool, dead)
        fail(pool)
        living = make(unique=Unique("daily"))
        accept(pool, living)
        assert reasons(again(pool, dead.id)) == {dead.id: "job.duplicate"}
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert again(pool, dead.id).redriven == (dead.id,)

    def test_another_organisations_key_is_no_hindrance(self, pool: SyncPool, make: Make) -> None:
        dead = make(unique=Unique("daily"))
        accept(pool, dead)
        fail(pool)
        accept(pool, make(org_id=uuid4(), unique=Unique("daily")))
        assert again(pool, dead.id).redriven == (dead.id,)

    def test_of_two_dead_ones_with_one_key_one_comes_back(self, pool: SyncPool, make: Make) -> None:
        dead = [make(unique=Unique("daily")) for _ in range(2)]
        for job in dead:
            accept(pool, job)
            fail(pool)
        answer = again(pool, *(j.id for j in dead))
        assert len(answer.redriven) == 1
        assert list(reasons(answer).values()) == ["job.duplicate"]

    def test_a_submit_and_a_redrive_of_one_key_never_both_succeed(self, pool: SyncPool, make: Make) -> None:
        for n in range(15):
            dead, new = (make(unique=Unique(f"key-{n}")) for _ in range(2))
            accept(pool, dead)
            fail(pool)

            def add(new: NewJob = new) -> None:
                try:
                    accept(pool, new)
                except ValueError:  # refused: the key is taken
                    return

            with ThreadPoolExecutor(2) as threads:
                for done in (threads.submit(again, pool, dead.id), threads.submit(add)):
                    done.result()
            assert len(claim(pool, 5)) == 1


class TestFamilies:
    @pytest.mark.parametrize("on_failure", ["fail", "cancel"])
    def test_children_that_a_failure_ended_wait_again_and_run_after_it(
        self, pool: SyncPool, make: Make, on_failure: Any
    ) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id, on_failure),))
        grandchild = make(type=GRADING_QUIZ.name, parents=(ParentEdge(child.id),))
        accept(pool, parent, child, grandchild)
        fail(pool)
        assert row(pool, grandchild.id)["status"] in (Status.FAILED, Status.CANCELLED)
        answer = again(pool, parent.id)
        assert dict(answer.jobs) == {
            parent.id: Status.QUEUED,
            child.id: Status.WAITING,
            grandchild.id: Status.WAITING,
        }
        assert answer.redriven == (parent.id,)
        stored = row(pool, child.id)
        assert (stored["pending_parents"], stored["error"], stored["finished_at"]) == (1, None, None)
        event = events(pool, child.id)[-1]
        assert (event["kind"], event["actor"]) == ("revived", f"parent:{parent.id}")
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert claim(pool, queue="grading")[0].id == child.id

    def test_a_child_ended_by_its_parent_is_not_redriven_without_it(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, parent, child)
        fail(pool)
        assert reasons(again(pool, child.id)) == {child.id: "job.parent_ended"}
        answer = again(pool, child.id, parent.id)
        assert dict(answer.jobs) == {parent.id: Status.QUEUED, child.id: Status.WAITING}
        assert set(answer.redriven) == {parent.id, child.id}

    def test_a_child_that_another_dead_parent_blocks_stays_until_that_one_is_redriven(
        self, pool: SyncPool, make: Make
    ) -> None:
        first, second = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(first.id), ParentEdge(second.id)))
        accept(pool, first, second, child)
        fail(pool, 2)
        assert again(pool, first.id).ids == (first.id,)
        assert row(pool, child.id)["status"] == Status.FAILED
        assert set(again(pool, second.id).ids) == {second.id, child.id}
        assert row(pool, child.id)["pending_parents"] == 2
        settle(pool, *(Outcome.completed(c, {}) for c in claim(pool, 2)))
        assert row(pool, child.id)["status"] == Status.QUEUED

    def test_a_parent_that_completed_is_not_waited_for_again(self, pool: SyncPool, make: Make) -> None:
        good, bad = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(good.id), ParentEdge(bad.id)))
        accept(pool, good, bad, child)
        a, b = claim(pool, 2)
        settle(pool, Outcome.completed(a, {}))
        settle(pool, Outcome.failed(b, ERROR))
        again(pool, b.id)
        assert row(pool, child.id)["pending_parents"] == 1
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert row(pool, child.id)["status"] == Status.QUEUED

    def test_a_child_that_runs_all_the_same_waits_for_the_redriven_parent_while_it_still_waits(
        self, pool: SyncPool, make: Make
    ) -> None:
        flaky, slow = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(flaky.id, "run"), ParentEdge(slow.id)))
        accept(pool, flaky, slow, child)
        one, other = claim(pool, 2)
        first, second = (one, other) if one.id == flaky.id else (other, one)
        settle(pool, Outcome.failed(first, ERROR))
        assert row(pool, child.id)["pending_parents"] == 1
        again(pool, flaky.id)
        assert row(pool, child.id)["pending_parents"] == 2
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert row(pool, child.id)["status"] == Status.WAITING, "the slow parent has not ended"
        settle(pool, Outcome.completed(second, {}))
        assert row(pool, child.id)["status"] == Status.QUEUED

    def test_a_child_that_failed_by_itself_is_not_touched(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id, "run"),))
        accept(pool, parent, child)
        fail(pool)
        fail(pool, queue="grading")
        assert again(pool, parent.id).ids == (parent.id,)
        assert row(pool, child.id)["status"] == Status.FAILED

    def test_a_job_cancelled_while_it_waited_waits_again(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, parent, child)
        cancel(pool, child.id)
        answer = again(pool, child.id)
        assert answer.jobs == ((child.id, Status.WAITING),)
        assert events(pool, child.id)[-1]["actor"] == "member:someone"
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert row(pool, child.id)["status"] == Status.QUEUED

    def test_a_child_cancelled_by_hand_stays_cancelled(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, parent, child)
        cancel(pool, child.id)
        fail(pool)
        assert again(pool, parent.id).ids == (parent.id,)

    def test_a_child_whose_unique_key_is_taken_stays_and_so_do_its_own(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),), unique=Unique("one"))
        grandchild = make(type=GRADING_QUIZ.name, parents=(ParentEdge(child.id),))
        accept(pool, parent, child, grandchild)
        fail(pool)
        accept(pool, make(type=GRADING_QUIZ.name, unique=Unique("one")))
        assert again(pool, parent.id).ids == (parent.id,)

    def test_without_its_parents_row_a_child_is_refused(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, parent, child)
        fail(pool)
        with pool.connection() as conn:
            conn.execute("delete from jobs where id = %s", (parent.id,))
            conn.execute("delete from job_dependencies")
        assert reasons(again(pool, child.id)) == {child.id: "job.parent_gone"}

    def test_a_fan_out_of_a_thousand_comes_back_in_one_go(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        children = [make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),)) for _ in range(1000)]
        accept(pool, parent, *children)
        fail(pool)
        assert len(again(pool, parent.id).ids) == 1001
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert len(claim(pool, 1000, queue="grading")) == 1000


class TestRaces:
    def test_another_parent_completing_at_the_same_moment_is_counted_once(self, pool: SyncPool, make: Make) -> None:
        for _ in range(25):
            dead, other = make(), make()
            child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(dead.id), ParentEdge(other.id)))
            accept(pool, dead, other, child)
            one, two = claim(pool, 2)
            first, second = (one, two) if one.id == dead.id else (two, one)
            settle(pool, Outcome.failed(first, ERROR))
            with ThreadPoolExecutor(2) as threads:
                for done in (
                    threads.submit(settle, pool, Outcome.completed(second, {})),
                    threads.submit(again, pool, dead.id),
                ):
                    done.result()
            assert (row(pool, child.id)["status"], row(pool, child.id)["pending_parents"]) == (Status.WAITING, 1)
            settle(pool, Outcome.completed(claim(pool)[0], {}))
            assert row(pool, child.id)["status"] == Status.QUEUED
            settle(pool, Outcome.completed(claim(pool, queue="grading")[0], {}))

    def test_it_waits_for_a_parent_that_is_ending_and_counts_what_that_left(
        self, pool: SyncPool, make: Make, eventually: Callable[..., Any]
    ) -> None:
        """The race of the test above, in its one dangerous order."""
        dead, other = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(dead.id), ParentEdge(other.id)))
        accept(pool, dead, other, child)
        one, two = claim(pool, 2)
        first, second = (one, two) if one.id == dead.id else (two, one)
        settle(pool, Outcome.failed(first, ERROR))
        with ThreadPoolExecutor(1) as threads, pool.connection() as ending:
            with ending.transaction():
                store.settle(ending, WORKER, [Outcome.completed(second, {})])
                redriving = threads.submit(again, pool, dead.id)
                eventually(lambda: lock_awaited(pool))
            redriving.result()
        assert row(pool, child.id)["pending_parents"] == 1

    def test_a_parent_that_fails_while_its_brother_is_redriven_leaves_the_child_ended(
        self, pool: SyncPool, make: Make, eventually: Callable[..., Any]
    ) -> None:
        dead, other = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(dead.id), ParentEdge(other.id)))
        accept(pool, dead, other, child)
        one, two = claim(pool, 2)
        first, second = (one, two) if one.id == dead.id else (two, one)
        settle(pool, Outcome.failed(first, ERROR))
        with ThreadPoolExecutor(1) as threads, pool.connection() as ending:
            with ending.transaction():
                store.settle(ending, WORKER, [Outcome.failed(second, ERROR)])
                redriving = threads.submit(again, pool, dead.id)
                eventually(lambda: lock_awaited(pool))
            redriving.result()
        assert row(pool, child.id)["status"] == Status.FAILED

    def test_a_child_accepted_while_its_parent_is_redriven_waits_for_it(self, pool: SyncPool, make: Make) -> None:
        for _ in range(15):
            parent = make()
            accept(pool, parent)
            fail(pool)
            child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id, "run"),))
            with ThreadPoolExecutor(2) as threads:
                for done in (threads.submit(again, pool, parent.id), threads.submit(accept, pool, child)):
                    done.result()
            settle(pool, Outcome.completed(claim(pool)[0], {}))
            assert row(pool, child.id)["status"] == Status.QUEUED
            settle(pool, Outcome.completed(claim(pool, queue="grading")[0], {}))


def lock_awaited(pool: SyncPool) -> bool:
    """Does another connection of this database wait for a row?"""
    sql = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with pool.connection() as conn:
        return conn.execute(sql).fetchone() is not None


class TestBatches:
    def batch(self, pool: SyncPool) -> dict[str, Any]:
        with pool.connection() as conn:
            found = conn.execute("select * from batches").fetchone()
        assert found is not None
        return found

    def accept_batch(self, pool: SyncPool, org_id: UUID, batch_id: UUID, *jobs: NewJob) -> None:
        total = sum(job.batch_id is not None for job in jobs)
        with pool.connection() as conn, conn.transaction():
            insert_batch(conn, NewBatch(batch_id, org_id, None, "upload", total))
            submit(conn, jobs)

    def test_counters_go_down_and_the_batch_finishes_again(self, pool: SyncPool, make: Make, org_id: UUID) -> None:
        batch_id = ids.new_uuid()
        jobs = [make(batch_id=batch_id) for _ in range(3)]
        self.accept_batch(pool, org_id, batch_id, *jobs)
        a, b, c = claim(pool, 3)
        settle(pool, Outcome.completed(a, {}), Outcome.failed(b, ERROR))
        cancel(pool, c.id)
        assert self.batch(pool)["finished_at"] is not None
        again(pool, b.id, c.id)
        batch = self.batch(pool)
        assert (batch["completed"], batch["failed"], batch["cancelled"], batch["finished_at"]) == (1, 0, 0, None)
        settle(pool, *(Outcome.completed(x, {}) for x in claim(pool, 2)))
        batch = self.batch(pool)
        assert (batch["completed"], batch["finished_at"] is not None) == (3, True)

    def test_a_completion_job_runs_once(self, pool: SyncPool, make: Make, org_id: UUID) -> None:
        batch_id = ids.new_uuid()
        job = make(batch_id=batch_id)
        after = make(type=GRADING_QUIZ.name, after_batch=batch_id)
        self.accept_batch(pool, org_id, batch_id, job, after)
        fail(pool)
        settle(pool, Outcome.completed(claim(pool, queue="grading")[0], {}))
        again(pool, job.id)
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert self.batch(pool)["finished_at"] is not None
        assert claim(pool, queue="grading") == []
        assert [e["kind"] for e in events(pool, after.id)] == ["accepted", "unblocked", "started", "completed"]

    def test_a_cancelled_completion_job_waits_for_its_batch_again(
        self, pool: SyncPool, make: Make, org_id: UUID
    ) -> None:
        batch_id = ids.new_uuid()
        job = make(batch_id=batch_id)
        after = make(type=GRADING_QUIZ.name, after_batch=batch_id)
        self.accept_batch(pool, org_id, batch_id, job, after)
        cancel(pool, after.id)
        assert again(pool, after.id).jobs == ((after.id, Status.WAITING),)
        with pool.connection() as conn, conn.transaction():
            store.cancel_batch(conn, batch_id, member_id=None, actor="member:x", reason=None)
        answer = again(pool, after.id, job.id)
        assert dict(answer.jobs) == {job.id: Status.QUEUED, after.id: Status.WAITING}
        assert self.batch(pool)["cancelled_at"] is None
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert row(pool, after.id)["status"] == Status.QUEUED
