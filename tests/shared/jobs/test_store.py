"""The job store on real Postgres: accept, claim, fence, settle, rescue, cancel, dependencies, batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.db import SyncPool
from shared.jobs import (
    InvalidSubmit,
    NewBatch,
    NewJob,
    Outcome,
    ParentEdge,
    Priority,
    Status,
    insert_batch,
    store,
    submit,
)
from shared.jobs.store import WorkerIdentity

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


def beat(pool: SyncPool) -> Any:
    with pool.connection() as conn:
        return store.heartbeat(conn, store.WorkerIdentity(WORKER, "ocr", "here", 1, 3), [], 15)


def rescue(pool: SyncPool) -> Any:
    with pool.connection() as conn, conn.transaction():
        return store.rescue(conn, settle_seconds=0)


def row(pool: SyncPool, id: UUID) -> dict[str, Any]:
    with pool.connection() as conn:
        found = conn.execute("select * from jobs where id = %s", (id,)).fetchone()
    assert found is not None
    return found


def kinds(pool: SyncPool, id: UUID) -> list[str]:
    with pool.connection() as conn:
        rows = conn.execute("select seq, kind from job_events where job_id = %s order by seq", (id,)).fetchall()
    assert [r["seq"] for r in rows] == list(range(1, len(rows) + 1)), "sequence numbers have no gap"
    return [r["kind"] for r in rows]


class TestAccept:
    def test_a_job_is_queued_with_its_first_event(self, pool: SyncPool, make: Make) -> None:
        job = make(priority=Priority.HIGH, metadata={"class": "8b"})
        accept(pool, job)
        stored = row(pool, job.id)
        assert (stored["status"], stored["queue"], stored["priority"]) == (Status.QUEUED, "ocr", 0)
        assert stored["metadata"] == {"class": "8b"}
        assert kinds(pool, job.id) == ["accepted"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"type": "ocr.nonsense", "payload": {}}, "type"),
            ({"payload": {}}, "payload.document_id"),
            ({"payload": {"document_id": str(uuid4()), "extra": 1}}, "payload.extra"),
            ({"max_retries": 1000}, "max_retries"),
            ({"time_limit": 3601}, "time_limit"),
            ({"run_at": datetime(2030, 1, 1)}, "run_at"),  # noqa: DTZ001
            ({"parents": (ParentEdge(uuid4()),)}, "depends_on"),
        ],
    )
    def test_a_bad_job_is_refused_with_its_field_named(
        self, pool: SyncPool, make: Make, fields: dict[str, Any], param: str
    ) -> None:
        good = make()
        with pytest.raises(InvalidSubmit) as refused:
            accept(pool, good, make(**fields))
        assert refused.value.param == param
        with pool.connection() as conn:
            assert conn.execute("select count(*) as n from jobs").fetchone() == {"n": 0}, "all or nothing"

    def test_a_thousand_jobs_are_accepted_in_one_statement(self, pool: SyncPool, make: Make) -> None:
        accept(pool, *(make() for _ in range(1000)))
        with pool.connection() as conn:
            assert conn.execute("select count(*) as n from job_events").fetchone() == {"n": 1000}

    def test_a_job_in_the_future_is_not_claimed_before_its_time(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make(run_at=datetime.now(UTC) + timedelta(hours=1)))
        assert claim(pool) == []


class TestClaim:
    def test_a_claimed_job_has_a_lease_and_the_next_attempt(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        [claimed] = claim(pool)
        assert (claimed.id, claimed.attempt) == (job.id, 1)
        stored = row(pool, job.id)
        assert stored["status"] == Status.PROCESSING
        assert stored["lease_until"] > stored["started_at"]
        assert claim(pool) == []

    def test_twenty_claimers_share_a_hundred_jobs_without_overlap(self, pool: SyncPool, make: Make) -> None:
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

    def test_high_comes_before_normal_before_low(self, pool: SyncPool, make: Make) -> None:
        low, normal, high = (make(priority=p) for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH))
        accept(pool, low, normal, high)
        assert [claim(pool)[0].id for _ in range(3)] == [high.id, normal.id, low.id]

    def test_waiting_lifts_a_low_job_so_that_it_never_starves(self, pool: SyncPool, make: Make) -> None:
        low, high = make(priority=Priority.LOW), make(priority=Priority.HIGH)
        accept(pool, low, high)
        with pool.connection() as conn:
            conn.execute(
                "update jobs set run_at = now() - make_interval(secs => %s) where id = %s",
                (2 * store.AGE_SECONDS + 1, low.id),
            )
        assert claim(pool)[0].id == low.id

    def test_organisations_alternate_however_many_jobs_one_has(self, pool: SyncPool, make: Make) -> None:
        big, small = uuid4(), uuid4()
        accept(pool, *(make(org_id=big) for _ in range(50)))
        single = make(org_id=small)
        accept(pool, single)
        first_three = [claim(pool)[0] for _ in range(3)]
        assert single.id in {c.id for c in first_three[:2]}, "at most one job of the other is before it"

    def test_jobs_in_flight_count_against_their_organisation(self, pool: SyncPool, make: Make) -> None:
        big, small = uuid4(), uuid4()
        accept(pool, *(make(org_id=big) for _ in range(10)))
        claim(pool, 3)  # three of the big organisation are running
        accept(pool, *(make(org_id=small) for _ in range(3)))
        assert {c.org_id for c in claim(pool, 3)} == {small}

    def test_a_queue_gives_only_its_own_jobs(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make(type=GRADING_QUIZ.name))
        assert claim(pool, queue="ocr") == []
        assert len(claim(pool, queue="grading")) == 1


class TestFence:
    def test_an_older_attempt_changes_nothing(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        [old] = claim(pool, lease=-1)  # its lease has run out already
        rescue(pool)
        [new] = claim(pool)
        with pool.connection() as conn:
            assert store.progress(conn, job.id, old.attempt, WORKER, 50, "late") is None
            assert store.log(conn, job.id, old.attempt, WORKER, {"message": "late"}) is None
        assert settle(pool, Outcome.completed(old, {"from": "old"})).jobs == ()
        assert settle(pool, Outcome.completed(new, {"from": "new"})).jobs == ((job.id, Status.COMPLETED),)
        assert row(pool, job.id)["result"] == {"from": "new"}
        assert kinds(pool, job.id) == ["accepted", "started", "crashed", "started", "completed"]

    def test_a_job_completes_once(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make())
        [claimed] = claim(pool)
        assert settle(pool, Outcome.completed(claimed, {})).jobs
        assert settle(pool, Outcome.completed(claimed, {})).jobs == ()
        assert settle(pool, Outcome.failed(claimed, {"code": "x", "message": "y"})).jobs == ()

    def test_progress_never_goes_back_within_an_attempt(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        claim(pool)
        with pool.connection() as conn:
            store.progress(conn, job.id, 1, WORKER, 60, "later")
            store.progress(conn, job.id, 1, WORKER, 40, "earlier")
        stored = row(pool, job.id)
        assert (stored["progress"], stored["step"]) == (60, "earlier")

    def test_a_heartbeat_renews_what_is_held_and_names_what_is_not(self, pool: SyncPool, make: Make) -> None:
        held, cancelled = make(), make()
        accept(pool, held, cancelled)
        mine = claim(pool, 2, lease=1)
        with pool.connection() as conn, conn.transaction():
            store.cancel(conn, [cancelled.id], member_id=None, actor="test", reason=None)
        before = row(pool, held.id)["lease_until"]
        identity = WorkerIdentity(WORKER, "ocr", "host", 1, 3)
        with pool.connection() as conn:
            lost = store.heartbeat(conn, identity, [(c.id, c.attempt) for c in mine], 60)
        assert [(item.id, item.status) for item in lost] == [(cancelled.id, Status.CANCELLED)]
        assert row(pool, held.id)["lease_until"] > before
        assert row(pool, cancelled.id)["lease_until"] is None


class TestSettle:
    def test_a_retry_waits_and_is_charged(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        [claimed] = claim(pool)
        settle(pool, Outcome.retry(claimed, {"code": "x.y", "message": "later"}, delay=60))
        stored = row(pool, job.id)
        assert (stored["status"], stored["retry_count"]) == (Status.QUEUED, 1)
        assert stored["next_retry_at"] == stored["run_at"] > datetime.now(UTC) + timedelta(seconds=50)
        assert stored["error"]["code"] == "x.y"
        assert claim(pool) == []

    def test_a_snooze_and_a_release_cost_no_retry(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        [claimed] = claim(pool)
        settle(pool, Outcome.released(claimed))
        [claimed] = claim(pool)
        settle(pool, Outcome.snoozed(claimed, "not yet", 0.0))
        [claimed] = claim(pool)
        assert (claimed.attempt, claimed.retry_count, claimed.stall_count) == (3, 0, 0)

    def test_a_completed_job_forgets_its_earlier_error(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        settle(pool, Outcome.retry(claim(pool)[0], {"code": "x", "message": "y"}, delay=0))
        settle(pool, Outcome.completed(claim(pool)[0], {"ok": True}))
        stored = row(pool, job.id)
        assert (stored["error"], stored["progress"], stored["result"]) == (None, 100, {"ok": True})


class TestRescue:
    def test_only_expired_leases_are_given_back(self, pool: SyncPool, make: Make) -> None:
        dead, alive = make(), make()
        accept(pool, dead)
        claim(pool, lease=-1)
        accept(pool, alive)
        claim(pool, lease=60)
        moved = rescue(pool)
        assert moved.jobs == ((dead.id, Status.QUEUED),)
        assert [w.job_id for w in moved.wakes] == [dead.id]
        assert row(pool, alive.id)["status"] == Status.PROCESSING

    def test_a_job_may_stall_twice_and_is_then_set_aside(self, pool: SyncPool, make: Make) -> None:
        job = make(max_retries=10)
        accept(pool, job)
        for _ in range(3):
            assert claim(pool, lease=-1)
            beat(pool)  # its worker is alive all the time
            rescue(pool)
        stored = row(pool, job.id)
        assert (stored["status"], stored["error"]["code"]) == (Status.FAILED, "job.stalled")
        assert (stored["stall_count"], stored["crash_count"], stored["retry_count"]) == (3, 0, 0)

    def test_a_job_that_two_processes_died_with_runs_alone_and_is_set_aside_the_third_time(
        self, pool: SyncPool, make: Make
    ) -> None:
        job = make(max_retries=10)
        accept(pool, job)
        for _ in range(2):
            assert claim(pool, lease=-1)
            rescue(pool)
        claims = claim(pool)
        assert (list(claims), claims.alone) == ([], True)
        with pool.connection() as conn:
            assert store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=-1, alone=True)
        rescue(pool)
        stored = row(pool, job.id)
        assert (stored["status"], stored["error"]["code"]) == (Status.FAILED, "job.crashed")
        assert (stored["stall_count"], stored["crash_count"], stored["retry_count"]) == (0, 3, 0)

    def test_one_process_at_a_time_makes_room_for_a_job_that_runs_alone(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make())
        for _ in range(2):
            claim(pool, lease=-1)
            rescue(pool)
        other = uuid4()
        with pool.connection() as conn:
            assert store.reserve(conn, queue="ocr", worker_id=WORKER)
            assert not store.reserve(conn, queue="ocr", worker_id=other)
            assert claim(pool).alone is False
            assert not store.claim(conn, queue="ocr", worker_id=other, lease_seconds=30, alone=True)
            assert store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30, alone=True)

    def test_two_rescuers_at_once_charge_a_stall_once(self, pool: SyncPool, make: Make) -> None:
        jobs = [make() for _ in range(30)]
        accept(pool, *jobs)
        claim(pool, 30, lease=-1)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda _: len(rescue(pool).jobs), range(4)))
        assert sum(found) == 30
        assert {row(pool, j.id)["crash_count"] for j in jobs} == {1}


class TestCancel:
    def cancel(self, pool: SyncPool, *wanted: UUID, member: UUID | None = None) -> Any:
        with pool.connection() as conn, conn.transaction():
            return store.cancel(conn, wanted, member_id=member, actor="member:x", reason="changed my mind")

    def test_a_queued_job_never_runs(self, pool: SyncPool, make: Make) -> None:
        job, member = make(), uuid4()
        accept(pool, job)
        self.cancel(pool, job.id, member=member)
        assert claim(pool) == []
        stored = row(pool, job.id)
        assert (stored["status"], stored["cancelled_by"]) == (Status.CANCELLED, member)
        assert stored["cancelled_at"] is not None

    def test_a_running_jobs_result_is_dropped(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        [claimed] = claim(pool)
        self.cancel(pool, job.id)
        assert settle(pool, Outcome.completed(claimed, {})).jobs == ()
        assert row(pool, job.id)["status"] == Status.CANCELLED

    def test_an_ended_job_stays_as_it_is(self, pool: SyncPool, make: Make) -> None:
        job = make()
        accept(pool, job)
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert self.cancel(pool, job.id).jobs == ()


class TestDependencies:
    def test_a_child_waits_for_all_parents(self, pool: SyncPool, make: Make) -> None:
        first, second = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(first.id), ParentEdge(second.id)))
        accept(pool, first, second, child)
        assert row(pool, child.id)["status"] == Status.WAITING
        moved = settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert moved.wakes == ()
        moved = settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert [w.job_id for w in moved.wakes] == [child.id]
        assert kinds(pool, child.id) == ["accepted", "unblocked"]

    def test_two_parents_ending_in_one_statement_free_the_child(self, pool: SyncPool, make: Make) -> None:
        first, second = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(first.id), ParentEdge(second.id)))
        accept(pool, first, second, child)
        settle(pool, *(Outcome.completed(c, {}) for c in claim(pool, 2)))
        assert row(pool, child.id)["status"] == Status.QUEUED

    @pytest.mark.parametrize(
        ("on_failure", "status"), [("fail", Status.FAILED), ("cancel", Status.CANCELLED), ("run", Status.QUEUED)]
    )
    def test_a_failed_parent_does_to_its_child_what_the_edge_says(
        self, pool: SyncPool, make: Make, on_failure: Any, status: Status
    ) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id, on_failure),))
        grandchild = make(type=GRADING_QUIZ.name, parents=(ParentEdge(child.id),))
        accept(pool, parent, child, grandchild)
        settle(pool, Outcome.failed(claim(pool)[0], {"code": "document.encrypted", "message": "Locked."}))
        assert row(pool, child.id)["status"] == status
        if status is Status.FAILED:
            error = row(pool, grandchild.id)["error"]
            assert (error["code"], error["message"]) == ("job.parent_failed", "Locked.")
            assert row(pool, grandchild.id)["status"] == Status.FAILED

    def test_a_cancelled_parent_cancels_its_children(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, parent, child)
        with pool.connection() as conn, conn.transaction():
            moved = store.cancel(conn, [parent.id], member_id=None, actor="test", reason=None)
        assert set(moved.jobs) == {(parent.id, Status.CANCELLED), (child.id, Status.CANCELLED)}

    def test_a_child_of_an_ended_parent_need_not_wait(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        accept(pool, parent)
        settle(pool, Outcome.completed(claim(pool)[0], {}))
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),))
        accept(pool, child)
        assert row(pool, child.id)["status"] == Status.QUEUED

    def test_a_child_of_a_failed_parent_is_refused(self, pool: SyncPool, make: Make) -> None:
        parent = make()
        accept(pool, parent)
        settle(pool, Outcome.failed(claim(pool)[0], {"code": "x", "message": "y"}))
        with pytest.raises(InvalidSubmit, match="depends_on"):
            accept(pool, make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),)))

    def test_another_organisations_job_cannot_be_a_parent(self, pool: SyncPool, make: Make) -> None:
        parent = make(org_id=uuid4())
        accept(pool, parent)
        with pytest.raises(InvalidSubmit, match="does not exist"):
            accept(pool, make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),)))

    def test_a_child_accepted_while_its_parent_ends_is_not_left_waiting(self, pool: SyncPool, make: Make) -> None:
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


class TestBatchesAndNotifications:
    def test_a_batch_counts_its_jobs_and_finishes_with_the_last(self, pool: SyncPool, make: Make, org_id: UUID) -> None:
        batch_id = ids.new_uuid()
        jobs = [make(batch_id=batch_id) for _ in range(3)]
        with pool.connection() as conn, conn.transaction():
            insert_batch(conn, NewBatch(batch_id, org_id, None, "upload", 3, webhook_url="https://app.example/h"))
            submit(conn, jobs)
        a, b, c = claim(pool, 3)
        settle(pool, Outcome.completed(a, {}), Outcome.failed(b, {"code": "x", "message": "y"}))
        with pool.connection() as conn:
            batch = conn.execute("select * from batches").fetchone()
        assert batch is not None
        assert (batch["completed"], batch["failed"], batch["finished_at"]) == (1, 1, None)
        with pool.connection() as conn, conn.transaction():
            store.cancel(conn, [c.id], member_id=None, actor="test", reason=None)
        with pool.connection() as conn:
            batch = conn.execute("select * from batches").fetchone()
            owed = conn.execute("select payload from jobs where type = 'notify.webhook'").fetchall()
        assert batch is not None
        assert batch["cancelled"] == 1
        assert batch["finished_at"] is not None
        assert [o["payload"]["event"] for o in owed] == ["batch.completed"]

    def test_notifications_are_jobs_written_with_the_result(self, pool: SyncPool, make: Make) -> None:
        job = make(webhook_url="https://app.example/hook", notify_email="t@school.example")
        accept(pool, job)
        moved = settle(pool, Outcome.completed(claim(pool)[0], {}))
        assert sorted(w.queue for w in moved.wakes) == ["notify", "notify"]
        hook, mail = sorted(claim(pool, 5, queue="notify"), key=lambda c: c.type == "notify.email")
        assert hook.payload["url"] == "https://app.example/hook"
        assert hook.payload["subject_id"] == str(job.id)
        assert (mail.payload["to"], mail.payload["event"]) == ("t@school.example", "job.completed")

    def test_a_retry_notifies_nobody(self, pool: SyncPool, make: Make) -> None:
        accept(pool, make(webhook_url="https://app.example/hook"))
        moved = settle(pool, Outcome.retry(claim(pool)[0], {"code": "x", "message": "y"}, delay=60))
        assert moved.wakes == ()

    def test_a_cancelled_job_sends_a_webhook_but_no_mail(self, pool: SyncPool, make: Make) -> None:
        job = make(webhook_url="https://app.example/hook", notify_email="t@school.example")
        accept(pool, job)
        with pool.connection() as conn, conn.transaction():
            store.cancel(conn, [job.id], member_id=None, actor="test", reason=None)
        assert [c.payload["event"] for c in claim(pool, 5, queue="notify")] == ["job.cancelled"]

    def test_effects_that_fail_leave_the_job_as_it_was(self, pool: SyncPool, make: Make) -> None:
        job = make(webhook_url="https://app.example/hook")
        accept(pool, job)
        [claimed] = claim(pool)
        with pool.connection() as conn, conn.transaction(force_rollback=True):  # as when an effect raises
            assert store.settle(conn, WORKER, [Outcome.completed(claimed, {})]).jobs
        assert row(pool, job.id)["status"] == Status.PROCESSING
        assert claim(pool, queue="notify") == []


def test_due_queues_lists_what_waits_now(pool: SyncPool, make: Make) -> None:
    accept(pool, make(), make(), make(type=GRADING_QUIZ.name), make(run_at=datetime.now(UTC) + timedelta(days=1)))
    with pool.connection() as conn:
        assert {(q, n) for q, n, _ in store.due_queues(conn)} == {("grading", 1), ("ocr", 2)}
