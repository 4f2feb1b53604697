"""What both stores promise of one job's life: acceptance, the state machine, the fence, ends, rescue, cancellation."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from contract_harness import ERROR, WORKER, Harness

from shared.contracts import GRADING_QUIZ
from shared.jobs import InvalidSubmit, LostLease, NewBatch, Outcome, ParentEdge, Priority, Status, Unique
from shared.jobs.store import RESERVE_SECONDS, WorkerIdentity
from shared.jobs.testing import MemoryStore


class TestAccept:
    def test_a_job_is_queued_with_its_first_event(self, h: Harness) -> None:
        member = uuid4()
        job = h.make(priority=Priority.HIGH, metadata={"class": "8b"}, created_by=member)
        accepted = h.accept(job)
        row = h.row(job.id)
        assert (row["status"], row["queue"], row["priority"], row["attempt"]) == (Status.QUEUED, "ocr", 0, 0)
        assert (row["metadata"], row["payload"]["document_id"]) == ({"class": "8b"}, job.payload["document_id"])
        assert row["run_at"] == row["created_at"]
        [event] = h.events(job.id)
        assert (event["kind"], event["actor"]) == ("accepted", f"member:{member}")
        assert [wake.job_id for wake in accepted.wakes] == [job.id]
        assert accepted.rows[0] == {name: row[name] for name in accepted.rows[0]}

    def test_defaults_come_from_the_types_policy_and_its_payload_model(self, h: Harness) -> None:
        job = h.make(type=GRADING_QUIZ.name)
        h.accept(job)
        row = h.row(job.id)
        assert (row["max_retries"], row["time_limit"]) == (2, 600.0)
        assert row["payload"] == {**job.payload, "submission_id": None}

    def test_rows_come_back_in_the_order_given(self, h: Harness) -> None:
        jobs = [h.make(priority=p) for p in (Priority.LOW, Priority.HIGH, Priority.NORMAL)]
        assert [row["id"] for row in h.accept(*jobs).rows] == [job.id for job in jobs]

    def test_a_thousand_jobs_are_accepted_at_once(self, h: Harness) -> None:
        h.accept(*(h.make() for _ in range(1000)))
        jobs = h.store.jobs()
        assert len(jobs) == 1000
        assert {row["event_seq"] for row in jobs} == {1}

    def test_nothing_is_accepted_from_an_empty_submit(self, h: Harness) -> None:
        assert h.accept().rows == []

    def test_a_job_in_the_future_is_not_claimed_before_its_time(self, h: Harness) -> None:
        accepted = h.accept(h.make(run_at=h.now() + timedelta(hours=1)))
        assert accepted.wakes == []
        h.advance(3590)
        assert h.claim() == []
        h.advance(11)
        assert len(h.claim()) == 1

    def test_a_date_in_the_past_is_now(self, h: Harness) -> None:
        past, plain = h.make(run_at=datetime(2001, 1, 1, tzinfo=UTC)), h.make()
        h.accept(plain)
        h.accept(past)
        assert h.order(2) == [plain.id, past.id], "nobody jumps the queue by claiming to have waited"

    def test_a_row_has_the_same_columns_and_kinds_of_values_in_both_stores(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        memory = MemoryStore()
        memory.submit([job])
        kinds = {name: type(value) for name, value in (memory.get(job.id) or {}).items()}
        assert {name: type(value) for name, value in h.row(job.id).items()} == kinds
        batch_id = h.batch(1)
        memory.insert_batch(NewBatch(batch_id, h.org_id, None, "x", 1))
        assert set(memory.get_batch(batch_id) or ()) == set(h.store.get_batch(batch_id) or ())


def refused(h: Harness, *jobs: Any) -> InvalidSubmit:
    before = len(h.store.jobs())
    with pytest.raises(InvalidSubmit) as found:
        h.accept(*jobs)
    assert len(h.store.jobs()) == before, "all or nothing"
    return found.value


DAY = timedelta(days=1)


class TestBadInput:
    """Each is refused with its field named, and takes its neighbours in the submit with it."""

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({"type": "ocr.nonsense", "payload": {}}, "job.unknown_type", "type"),
            ({"payload": {}}, "job.invalid_payload", "payload.document_id"),
            ({"payload": {"document_id": str(uuid4()), "extra": 1}}, "job.invalid_payload", "payload.extra"),
            ({"payload": {"document_id": "Emma Smith"}}, "job.invalid_payload", "payload.document_id"),
            ({"priority": 3}, "job.invalid", "priority"),
            ({"priority": -1}, "job.invalid", "priority"),
            ({"max_retries": 1000}, "job.invalid", "max_retries"),
            ({"max_retries": -1}, "job.invalid", "max_retries"),
            ({"time_limit": 3601}, "job.invalid", "time_limit"),
            ({"time_limit": 0}, "job.invalid", "time_limit"),
            ({"time_limit": float("nan")}, "job.invalid", "time_limit"),
            ({"run_at": datetime(2030, 1, 1)}, "job.invalid", "run_at"),  # noqa: DTZ001
            ({"run_at": datetime.now(UTC) + 400 * DAY}, "job.invalid", "run_at"),
            ({"concurrency_key": ""}, "job.invalid", "concurrency_key"),
            ({"concurrency_key": "k" * 201}, "job.invalid", "concurrency_key"),
            ({"concurrency_key": "a\0b"}, "job.invalid", "concurrency_key"),
            ({"concurrency_key": "k", "concurrency_limit": 0}, "job.invalid", "concurrency_limit"),
            ({"unique": Unique("")}, "job.invalid", "unique_key"),
            ({"unique": Unique("k", statuses=frozenset())}, "job.invalid", "unique_states"),
            ({"unique": Unique("k", period=0)}, "job.invalid", "unique_period"),
            ({"parents": (ParentEdge(uuid4()),)}, "job.unknown_parent", "depends_on"),
            ({"after_batch": uuid4()}, "job.unknown_batch", "after_batch"),
        ],
    )
    def test_a_bad_field_is_named(self, h: Harness, fields: dict[str, Any], code: str, param: str) -> None:
        error = refused(h, h.make(), h.make(**fields))
        assert (error.code, error.param) == (code, param)
        assert "Emma" not in str(error), "what was sent is not repeated: it may be a student's"

    @pytest.mark.parametrize("text", ["a\0b", "\ud800"])
    @pytest.mark.parametrize("field", ["metadata", "webhook_url", "notify_email"])
    def test_text_that_cannot_be_stored_is_refused_with_its_field_named(
        self, h: Harness, field: str, text: str
    ) -> None:
        error = refused(h, h.make(**{field: {"note": text} if field == "metadata" else text}))
        assert error.param == field

    def test_two_jobs_of_one_submit_with_the_same_id_are_refused(self, h: Harness) -> None:
        job = h.make()
        assert refused(h, job, job).param == "id"

    def test_what_is_refused_leaves_no_mark_on_an_earlier_job(self, h: Harness) -> None:
        parent = h.make()
        h.accept(parent)
        refused(h, h.child(parent, h.make()))
        assert h.row(parent.id)["has_children"] is False


class TestFence:
    def test_an_older_attempt_changes_nothing(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [old] = h.claim()
        h.advance(31)
        h.rescue()
        [new] = h.claim()
        assert (old.attempt, new.attempt) == (1, 2)
        assert h.store.progress(job.id, old.attempt, WORKER, 50, "late") is None
        assert h.store.log(job.id, old.attempt, WORKER, {"message": "late"}) is None
        assert h.settle(Outcome.completed(old, {"from": "old"})).jobs == ()
        assert h.store.settle_plain(WORKER, [Outcome.failed(old, ERROR)]).jobs == ()
        assert h.settle(Outcome.completed(new, {"from": "new"})).jobs == ((job.id, Status.COMPLETED),)
        assert h.row(job.id)["result"] == {"from": "new"}
        assert h.kinds(job.id) == ["accepted", "started", "crashed", "started", "completed"]

    def test_a_job_ends_once(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [claimed] = h.claim()
        assert h.complete(claimed).jobs
        assert h.complete(claimed).jobs == ()
        assert h.fail(claimed).jobs == ()
        assert h.cancel(job.id).jobs == ()
        assert h.status(job.id) is Status.COMPLETED

    def test_a_job_that_does_not_run_cannot_end(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [claimed] = h.claim()
        h.settle(Outcome.released(claimed))
        assert h.complete(claimed).jobs == ()
        assert h.status(job.id) is Status.QUEUED

    def test_progress_never_goes_back_within_an_attempt_and_stays_within_bounds(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [claimed] = h.claim()
        for percent, step in ((-5, "first"), (60, "later"), (40, "earlier"), (400, "last")):
            assert h.store.progress(job.id, 1, WORKER, percent, step)
        assert [e["data"] for e in h.events(job.id)[2:]] == [
            {"percent": 0, "step": "first"},
            {"percent": 60, "step": "later"},
            {"percent": 60, "step": "earlier"},
            {"percent": 100, "step": "last"},
        ]
        h.settle(Outcome.released(claimed))
        h.claim()
        assert (h.row(job.id)["progress"], h.row(job.id)["step"]) == (0, None), "a new attempt begins anew"

    def test_log_lines_are_events_of_their_attempt(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.claim()
        assert h.store.log(job.id, 1, WORKER, {"message": "read", "pages": 3}) == 3
        event = h.events(job.id)[-1]
        assert (event["kind"], event["attempt"], event["data"]) == ("log", 1, {"message": "read", "pages": 3})
        assert event["actor"] == f"worker:{WORKER}"

    def test_a_heartbeat_renews_what_is_held_and_says_what_became_of_the_rest(self, h: Harness) -> None:
        held, cancelled, gone = h.make(), h.make(), h.make()
        h.accept(held, cancelled, gone)
        mine = h.claim(3, lease=10)
        h.cancel(cancelled.id)
        [old] = [c for c in mine if c.id == gone.id]
        h.settle(Outcome.released(old))
        h.claim()
        unknown = replace(old, id=uuid4())
        lost = h.beat(*mine, unknown, lease=60)
        assert sorted(lost, key=lambda item: item.id) == sorted(
            [LostLease(cancelled.id, 1, Status.CANCELLED), LostLease(gone.id, 1, None), LostLease(unknown.id, 1, None)],
            key=lambda item: item.id,
        )
        h.advance(50)
        assert h.rescue().ids == (gone.id,), "what was renewed holds for the new lease"


class TestSettle:
    def test_a_retry_waits_and_is_charged(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        moved = h.settle(Outcome.retry(h.claim()[0], ERROR, delay=60))
        assert (moved.jobs, moved.wakes) == (((job.id, Status.QUEUED),), ())
        row = h.row(job.id)
        assert (row["status"], row["retry_count"], row["error"]) == (Status.QUEUED, 1, ERROR)
        assert row["next_retry_at"] == row["run_at"]
        event = h.events(job.id)[-1]
        assert (event["kind"], event["data"]["error"]) == ("retrying", ERROR)
        assert "next_retry_at" in event["data"]
        assert h.claim() == []
        h.advance(60)
        [again] = h.claim()
        assert (again.attempt, again.retry_count, h.row(job.id)["next_retry_at"]) == (2, 1, None)

    def test_a_snooze_and_a_release_cost_no_retry(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        accepted_at = h.row(job.id)["run_at"]
        h.settle(Outcome.released(h.claim()[0]))
        assert h.row(job.id)["run_at"] == accepted_at, "what is given back keeps its place"
        h.settle(Outcome.snoozed(h.claim()[0], "not yet", 30))
        assert h.claim() == []
        h.advance(30)
        [claimed] = h.claim()
        assert (claimed.attempt, claimed.retry_count, claimed.stall_count, claimed.crash_count) == (3, 0, 0, 0)
        assert h.kinds(job.id) == ["accepted", "started", "released", "started", "snoozed", "started"]

    def test_a_completed_job_forgets_its_earlier_error(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.settle(Outcome.retry(h.claim()[0], ERROR, delay=0))
        h.settle(Outcome.completed(h.claim()[0], {"ok": True}))
        row = h.row(job.id)
        assert (row["error"], row["progress"], row["result"]) == (None, 100, {"ok": True})
        assert row["finished_at"] is not None
        assert (row["lease_until"], row["worker_id"]) == (None, None)

    def test_a_failed_job_keeps_its_error_and_its_progress(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [claimed] = h.claim()
        h.store.progress(job.id, 1, WORKER, 40, "Reading")
        h.fail(claimed)
        row = h.row(job.id)
        assert (row["status"], row["error"], row["progress"], row["result"]) == (Status.FAILED, ERROR, 40, None)

    def test_several_jobs_end_by_one_call_each_in_its_way(self, h: Harness) -> None:
        jobs = [h.make() for _ in range(3)]
        h.accept(*jobs)
        by_id = {c.id: c for c in h.claim(3)}
        a, b, c = (by_id[job.id] for job in jobs)
        moved = h.settle(Outcome.completed(a, {}), Outcome.failed(b, ERROR), Outcome.retry(c, ERROR, delay=0))
        assert set(moved.jobs) == {(a.id, Status.COMPLETED), (b.id, Status.FAILED), (c.id, Status.QUEUED)}
        assert [w.job_id for w in moved.wakes] == [c.id]

    def test_plain_settling_ends_only_what_nothing_follows_from(self, h: Harness) -> None:
        plain, parent = h.make(), h.make()
        others = [h.make(batch_id=h.batch(1)), h.make(notify_email="t@school.example"), h.make(concurrency_key="k")]
        h.accept(plain, parent, h.child(parent), *others)
        claimed = h.claim(10)
        assert {c.id for c in claimed if c.has_followers} == {parent.id, *(job.id for job in others)}
        assert h.store.settle_plain(WORKER, [Outcome.completed(c, {}) for c in claimed]).ids == (plain.id,)
        assert h.kinds(plain.id)[-1] == "completed"
        assert {h.status(job.id) for job in (parent, *others)} == {Status.PROCESSING}
        # Nothing follows from going back to the queue, except for a key that comes free.
        back = h.store.settle_plain(WORKER, [Outcome.retry(c, ERROR, delay=60) for c in claimed])
        assert set(back.ids) == {parent.id, others[0].id, others[1].id}

    def test_effects_that_fail_leave_everything_as_it_was(self, h: Harness) -> None:
        batch_id = h.batch(1)
        job = h.make(webhook_url="https://app.example/hook", batch_id=batch_id)
        child = h.child(job)
        h.accept(job, child)
        [claimed] = h.claim()
        with contextlib.suppress(ZeroDivisionError), h.store.transaction():
            assert h.complete(claimed).jobs
            raise ZeroDivisionError
        assert (h.status(job.id), h.status(child.id)) == (Status.PROCESSING, Status.WAITING)
        assert h.counters(batch_id) == (0, 0, 0, False)
        assert len(h.store.jobs()) == 2
        assert h.kinds(job.id) == ["accepted", "started"]
        assert h.complete(claimed).jobs


class TestRescue:
    def test_only_expired_leases_are_given_back(self, h: Harness) -> None:
        dead, alive = h.make(), h.make()
        h.accept(dead)
        h.claim(lease=30)
        h.advance(20)
        h.accept(alive)
        h.claim(lease=30)
        h.advance(20)
        moved = h.rescue()
        assert moved.jobs == ((dead.id, Status.QUEUED),)
        assert [w.job_id for w in moved.wakes] == [dead.id]
        assert h.status(alive.id) is Status.PROCESSING
        assert h.rescue().jobs == (), "and once"

    def test_a_job_may_stall_twice_and_is_then_set_aside(self, h: Harness) -> None:
        job = h.make(max_retries=10)
        h.accept(job)
        for _ in range(3):
            assert h.claim(lease=-1)
            h.beat()  # its worker is alive all the time
            h.rescue()
        row = h.row(job.id)
        assert (row["status"], row["error"]["code"]) == (Status.FAILED, "job.stalled")
        assert (row["stall_count"], row["crash_count"], row["retry_count"], row["hold"]) == (3, 0, 0, 0)
        assert h.kinds(job.id)[2::2] == ["stalled", "stalled", "failed"]

    def test_a_job_that_two_processes_died_with_runs_alone_and_is_set_aside_the_third_time(self, h: Harness) -> None:
        job, other = h.make(max_retries=10), h.make()
        h.accept(job)
        h.crash(2)
        claims = h.claim()
        assert (list(claims), claims.alone) == ([], True)
        h.accept(other)
        assert [c.id for c in h.claim(10)] == [other.id], "the others go on"
        h.crash(1, alone=True)
        row = h.row(job.id)
        assert (row["status"], row["error"]["code"]) == (Status.FAILED, "job.crashed")
        assert (row["stall_count"], row["crash_count"], row["retry_count"]) == (0, 3, 0)

    def test_a_job_that_runs_alone_ends_as_any_other(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.crash(2)
        [claimed] = h.claim(alone=True)
        assert (claimed.attempt, claimed.crash_count) == (3, 2)
        h.settle(Outcome.retry(claimed, ERROR, delay=10))
        h.advance(10)
        assert h.claim() == [], "and runs alone again"
        h.complete(*h.claim(alone=True))
        assert h.status(job.id) is Status.COMPLETED

    def test_a_crash_costs_the_neighbours_nothing(self, h: Harness) -> None:
        jobs = [h.make() for _ in range(3)]
        h.accept(*jobs)
        mine = h.claim(3)
        h.advance(20)
        h.beat(*(c for c in mine if c.id != jobs[0].id), lease=30)
        h.store.leave(WORKER)
        h.advance(15)
        assert h.rescue().ids == (jobs[0].id,)
        assert [h.row(job.id)["crash_count"] for job in jobs] == [1, 0, 0]

    def test_a_worker_that_left_is_dead(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.claim(lease=-1)
        h.beat()
        h.store.leave(WORKER)
        h.rescue()
        assert h.kinds(job.id)[-1] == "crashed"

    def test_one_process_at_a_time_makes_room_for_a_job_that_runs_alone(self, h: Harness) -> None:
        h.accept(h.make())
        h.crash(2)
        other = uuid4()
        assert h.store.reserve(queue="ocr", worker_id=WORKER)
        assert not h.store.reserve(queue="ocr", worker_id=other)
        assert h.claim().alone is False
        assert h.claim(worker=other, alone=True) == []
        assert h.claim(alone=True)

    def test_a_reservation_lapses(self, h: Harness) -> None:
        h.accept(h.make())
        h.crash(2)
        assert h.store.reserve(queue="ocr", worker_id=WORKER)
        h.advance(RESERVE_SECONDS + 1)
        assert h.claim(worker=uuid4(), alone=True)

    def test_types_that_a_process_cannot_do_are_not_reserved(self, h: Harness) -> None:
        h.accept(h.make())
        h.crash(2)
        assert not h.store.reserve(queue="ocr", worker_id=WORKER, types=["ocr.other"])
        assert h.claim(types=["ocr.other"]).alone is False
        assert h.store.reserve(queue="ocr", worker_id=WORKER, types=["ocr.document"])

    def test_orphans_are_given_back_and_charged_to_nobody(self, h: Harness) -> None:
        orphan, held, fresh, foreign = (h.make() for _ in range(4))
        h.accept(orphan, held)
        h.claim(2, lease=30)
        h.advance(20)  # more than half a lease: no answer of the claim is still on its way
        h.accept(fresh, foreign)
        h.claim(1, lease=30)
        h.claim(1, lease=12, worker=uuid4())
        moved = h.store.release_orphans(WorkerIdentity(WORKER, "ocr", "here", 1, 3), [held.id], 30)
        assert moved.jobs == ((orphan.id, Status.QUEUED),)
        row = h.row(orphan.id)
        assert (row["stall_count"], row["crash_count"], row["retry_count"]) == (0, 0, 0)
        assert h.kinds(orphan.id)[-1] == "released"


class TestCancel:
    def test_a_queued_job_never_runs(self, h: Harness) -> None:
        job, member = h.make(), uuid4()
        h.accept(job)
        h.cancel(job.id, member=member)
        assert h.claim() == []
        row = h.row(job.id)
        assert (row["status"], row["cancelled_by"]) == (Status.CANCELLED, member)
        assert row["cancelled_at"] == row["finished_at"] is not None
        event = h.events(job.id)[-1]
        assert (event["kind"], event["actor"], event["data"]) == (
            "cancelled",
            "member:x",
            {"reason": "changed my mind"},
        )

    def test_a_running_jobs_result_is_dropped(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        [claimed] = h.claim()
        h.cancel(job.id)
        assert h.complete(claimed).jobs == ()
        assert h.store.progress(job.id, 1, WORKER, 50, "late") is None
        assert (h.status(job.id), h.row(job.id)["result"]) == (Status.CANCELLED, None)

    def test_a_job_that_waits_for_its_retry_has_none_after(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.settle(Outcome.retry(h.claim()[0], ERROR, delay=60))
        h.cancel(job.id)
        assert h.row(job.id)["next_retry_at"] is None
        h.advance(61)
        assert h.claim() == []

    def test_an_ended_job_stays_as_it_is(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        h.complete(*h.claim())
        assert h.cancel(job.id, uuid4()).jobs == ()
        assert h.kinds(job.id)[-1] == "completed"


def test_due_queues_count_what_waits_now(h: Harness) -> None:
    h.accept(h.make(), h.make(), h.make(type=GRADING_QUIZ.name), h.make(run_at=h.now() + DAY))
    assert {(queue, due) for queue, due, _ in h.store.due_queues()} == {("grading", 1), ("ocr", 2)}
    h.claim(2)
    assert [queue for queue, _, _ in h.store.due_queues()] == ["grading"]


def test_due_queues_count_a_job_that_runs_alone(h: Harness) -> None:
    h.accept(h.make())
    h.crash(2)
    assert [(queue, due) for queue, due, _ in h.store.due_queues()] == [("ocr", 1)]
