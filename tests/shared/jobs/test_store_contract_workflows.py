"""What both stores promise of several jobs: dependencies, batches, unique keys, and the notifications they owe."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from contract_harness import ERROR, Harness

from shared import ids
from shared.contracts import GRADING_QUIZ, NOTIFY_EMAIL, NOTIFY_WEBHOOK
from shared.jobs import TERMINAL, InvalidSubmit, Outcome, ParentEdge, Status

HOOK = "https://app.example/hook"
MAIL = "t@school.example"


def refused(h: Harness, *jobs: Any) -> InvalidSubmit:
    before = {row["id"]: row for row in h.store.jobs()}
    with pytest.raises(InvalidSubmit) as found:
        h.accept(*jobs)
    assert {row["id"]: row for row in h.store.jobs()} == before, "all or nothing"
    return found.value


class TestDependencies:
    def test_a_child_waits_for_all_parents(self, h: Harness) -> None:
        first, second = h.make(), h.make()
        child = h.child(first, second)
        accepted = h.accept(first, second, child)
        assert {w.job_id for w in accepted.wakes} == {first.id, second.id}
        assert h.status(child.id) is Status.WAITING
        assert h.claim(queue="grading") == []
        assert h.complete(*h.claim()).wakes == ()
        assert [w.job_id for w in h.complete(*h.claim()).wakes] == [child.id]
        assert h.kinds(child.id) == ["accepted", "unblocked"]
        assert h.events(child.id)[-1]["actor"] == "parents"

    def test_two_parents_ending_by_one_call_free_the_child_once(self, h: Harness) -> None:
        first, second = h.make(), h.make()
        child = h.child(first, second)
        h.accept(first, second, child)
        assert [w.job_id for w in h.complete(*h.claim(2)).wakes] == [child.id]
        assert h.kinds(child.id) == ["accepted", "unblocked"]

    def test_a_chain_runs_one_after_another_whatever_the_order_of_the_submit(self, h: Harness) -> None:
        a = h.make()
        b = h.make(parents=(ParentEdge(a.id),))
        c = h.make(parents=(ParentEdge(b.id),))
        h.accept(c, b, a)
        ran = []
        while claimed := h.claim(10):
            ran.append([job.id for job in claimed])
            h.complete(*claimed)
        assert ran == [[a.id], [b.id], [c.id]]

    def test_fan_out_and_fan_in(self, h: Harness) -> None:
        start = h.make()
        middle = [h.make(parents=(ParentEdge(start.id),)) for _ in range(20)]
        end = h.make(parents=tuple(ParentEdge(job.id) for job in middle))
        h.accept(start, *middle, end)
        ran = []
        while claimed := h.claim(50):
            ran.append({job.id for job in claimed})
            h.complete(*claimed)
        assert ran == [{start.id}, {job.id for job in middle}, {end.id}]

    def test_a_freed_child_still_waits_for_its_date(self, h: Harness) -> None:
        parent = h.make()
        child = h.child(parent, run_at=h.now() + timedelta(hours=1))
        h.accept(parent, child)
        assert h.complete(*h.claim()).wakes == ()
        assert h.status(child.id) is Status.QUEUED
        assert h.claim(queue="grading") == []
        h.advance(3601)
        assert h.claim(queue="grading")

    def test_a_parents_retry_frees_nobody(self, h: Harness) -> None:
        parent = h.make()
        child = h.child(parent)
        h.accept(parent, child)
        h.settle(Outcome.retry(h.claim()[0], ERROR, delay=0))
        assert h.status(child.id) is Status.WAITING

    @pytest.mark.parametrize(
        ("on_failure", "status"), [("fail", Status.FAILED), ("cancel", Status.CANCELLED), ("run", Status.QUEUED)]
    )
    def test_a_failed_parent_does_to_its_child_what_the_edge_says(
        self, h: Harness, on_failure: Any, status: Status
    ) -> None:
        parent = h.make()
        child = h.child(parent, on_failure=on_failure)
        grandchild = h.child(child)
        h.accept(parent, child, grandchild)
        moved = h.fail(*h.claim())
        assert h.status(child.id) is status
        expected = {Status.QUEUED: Status.WAITING}.get(status, status)
        assert h.status(grandchild.id) is expected
        assert set(moved.ids) == {parent.id} | ({child.id, grandchild.id} if status in TERMINAL else set())
        if status is Status.FAILED:
            error = h.row(grandchild.id)["error"]
            assert (error["code"], error["message"]) == ("job.parent_failed", "Locked.")
            assert error["details"] == {"parent_id": str(child.id), "parent_code": "job.parent_failed"}
            assert h.row(child.id)["error"]["details"]["parent_code"] == "document.encrypted"
        if status in TERMINAL:
            assert h.events(child.id)[-1]["actor"] == f"parent:{parent.id}"

    @pytest.mark.parametrize(
        ("on_failure", "status"), [("fail", Status.CANCELLED), ("cancel", Status.CANCELLED), ("run", Status.QUEUED)]
    )
    def test_a_cancelled_parent_cancels_its_children_unless_they_run_all_the_same(
        self, h: Harness, on_failure: Any, status: Status
    ) -> None:
        parent, member = h.make(), uuid4()
        child = h.child(parent, on_failure=on_failure)
        h.accept(parent, child)
        h.cancel(parent.id, member=member)
        assert h.status(child.id) is status
        if status is Status.CANCELLED:
            assert h.row(child.id)["cancelled_by"] == member

    def test_one_failed_parent_of_many_is_enough(self, h: Harness) -> None:
        parents = [h.make() for _ in range(3)]
        child = h.child(*parents)
        h.accept(*parents, child)
        a, b, c = h.claim(3)
        h.complete(a)
        h.fail(b)
        assert h.status(child.id) is Status.FAILED
        h.complete(c)
        assert h.kinds(child.id) == ["accepted", "failed"]

    def test_parents_that_end_differently_by_one_call_are_all_heard(self, h: Harness) -> None:
        good, bad = h.make(), h.make()
        child = h.child(good, bad)
        h.accept(good, bad, child)
        a, b = h.claim(2)
        h.settle(Outcome.completed(a, {}), Outcome.failed(b, ERROR))
        assert h.status(child.id) is Status.FAILED

    def test_a_child_that_runs_whatever_happens_waits_for_all_the_same(self, h: Harness) -> None:
        parents = [h.make() for _ in range(3)]
        child = h.child(*parents, on_failure="run")
        h.accept(*parents, child)
        a, b, c = h.claim(3)
        h.fail(a)
        h.cancel(b.id)
        assert h.status(child.id) is Status.WAITING
        h.complete(c)
        assert h.status(child.id) is Status.QUEUED

    def test_a_cancelled_child_stays_so_when_its_parent_completes(self, h: Harness) -> None:
        parent = h.make()
        child = h.child(parent)
        h.accept(parent, child)
        h.cancel(child.id)
        assert h.complete(*h.claim()).wakes == ()
        assert h.status(child.id) is Status.CANCELLED

    def test_a_parent_that_crashes_too_often_fails_its_children(self, h: Harness) -> None:
        parent = h.make()
        child = h.child(parent)
        h.accept(parent, child)
        h.crash(2)
        h.crash(1, alone=True)
        assert h.row(child.id)["error"]["details"]["parent_code"] == "job.crashed"


class TestLaterChildren:
    """Children of jobs that were accepted before."""

    def test_a_child_waits_for_a_parent_accepted_before(self, h: Harness) -> None:
        parent = h.make()
        h.accept(parent)
        child = h.child(parent)
        h.accept(child)
        assert (h.status(child.id), h.row(parent.id)["has_children"]) == (Status.WAITING, True)
        assert [w.job_id for w in h.complete(*h.claim()).wakes] == [child.id]

    def test_a_child_of_a_completed_parent_need_not_wait(self, h: Harness) -> None:
        parent = h.make()
        h.accept(parent)
        h.complete(*h.claim())
        child = h.child(parent)
        assert [w.job_id for w in h.accept(child).wakes] == [child.id]

    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    def test_a_child_of_a_parent_that_did_not_complete_is_refused(self, h: Harness, end: str) -> None:
        parent = h.make()
        h.accept(parent)
        [claimed] = h.claim()
        if end == "failed":
            h.fail(claimed)
        else:
            h.cancel(parent.id)
        error = refused(h, h.child(parent))
        assert (error.code, error.param) == ("job.parent_ended", "depends_on")
        child = h.child(parent, on_failure="run")
        h.accept(child)
        assert h.status(child.id) is Status.QUEUED


class TestRefusedDependencies:
    def test_a_job_cannot_wait_for_itself(self, h: Harness) -> None:
        id = ids.new_uuid()
        error = refused(h, h.make(id=id, parents=(ParentEdge(id),)))
        assert (error.code, error.param) == ("job.dependency_cycle", "depends_on")

    @pytest.mark.parametrize("length", [2, 3, 10])
    def test_a_circle_is_refused(self, h: Harness, length: int) -> None:
        circle = [ids.new_uuid() for _ in range(length)]
        jobs = [h.make(id=id, parents=(ParentEdge(circle[n - 1]),)) for n, id in enumerate(circle)]
        error = refused(h, h.make(), *jobs)
        assert (error.code, error.param) == ("job.dependency_cycle", "depends_on")

    def test_the_same_parent_twice_is_refused(self, h: Harness) -> None:
        parent = h.make()
        h.accept(parent)
        assert refused(h, h.child(parent, parent)).param == "depends_on"

    def test_another_organisations_job_does_not_exist(self, h: Harness) -> None:
        parent = h.make(org_id=uuid4())
        h.accept(parent)
        error = refused(h, h.child(parent))
        assert (error.code, error.param) == ("job.unknown_parent", "depends_on")

    def test_another_organisations_job_of_the_same_submit_does_not_exist_either(self, h: Harness) -> None:
        parent = h.make(org_id=uuid4())
        assert refused(h, parent, h.child(parent)).param == "depends_on"

    def test_a_completion_job_inside_its_own_batch_is_refused(self, h: Harness) -> None:
        batch_id = h.batch(2)
        error = refused(h, h.make(batch_id=batch_id), h.make(batch_id=batch_id, after_batch=batch_id))
        assert error.param == "after_batch"

    def test_a_job_of_a_batch_that_waits_for_the_batchs_completion_job_is_refused(self, h: Harness) -> None:
        batch_id = h.batch(1)
        after = h.make(after_batch=batch_id)
        error = refused(h, after, h.child(after, batch_id=batch_id))
        assert error.code == "job.dependency_cycle"

    def test_another_organisations_batch_does_not_exist(self, h: Harness) -> None:
        batch_id = h.batch(1, org_id=uuid4())
        assert refused(h, h.make(batch_id=batch_id)).param == "batch_id"

    def test_another_organisations_batch_cannot_be_waited_for(self, h: Harness) -> None:
        batch_id = h.batch(1, org_id=uuid4())
        assert refused(h, h.make(after_batch=batch_id)).param == "after_batch"


class TestBatches:
    def test_a_batch_counts_its_jobs_and_finishes_with_the_last(self, h: Harness) -> None:
        batch_id = h.batch(3, webhook_url=HOOK)
        h.accept(*(h.make(batch_id=batch_id) for _ in range(3)))
        a, b, c = h.claim(3)
        h.settle(Outcome.completed(a, {}), Outcome.failed(b, ERROR))
        assert h.counters(batch_id) == (1, 1, 0, False)
        h.cancel(c.id)
        assert h.counters(batch_id) == (1, 1, 1, True)
        [owed] = h.claim(5, queue="notify")
        assert (owed.payload["event"], owed.payload["subject_id"]) == ("batch.completed", str(batch_id))

    def test_children_that_a_failure_ends_are_counted(self, h: Harness) -> None:
        batch_id = h.batch(3)
        parent = h.make(batch_id=batch_id)
        child = h.child(parent, batch_id=batch_id)
        h.accept(parent, child, h.child(child, on_failure="cancel", batch_id=batch_id))
        h.fail(*h.claim())
        assert h.counters(batch_id) == (0, 2, 1, True)

    def test_a_retry_is_not_counted(self, h: Harness) -> None:
        batch_id = h.batch(1)
        h.accept(h.make(batch_id=batch_id))
        h.settle(Outcome.retry(h.claim()[0], ERROR, delay=0))
        assert h.counters(batch_id) == (0, 0, 0, False)
        h.complete(*h.claim())
        assert h.counters(batch_id) == (1, 0, 0, True)

    @pytest.mark.parametrize("last", ["completed", "failed", "cancelled"])
    def test_the_completion_job_runs_when_all_have_ended_however_they_did(self, h: Harness, last: str) -> None:
        batch_id = h.batch(2)
        jobs = [h.make(batch_id=batch_id) for _ in range(2)]
        after = h.make(type=GRADING_QUIZ.name, after_batch=batch_id)
        h.accept(*jobs, after)
        a, b = h.claim(2)
        h.complete(a)
        assert h.status(after.id) is Status.WAITING
        moved = {"completed": h.complete, "failed": h.fail, "cancelled": lambda job: h.cancel(job.id)}[last](b)
        assert [w.job_id for w in moved.wakes] == [after.id]
        assert h.kinds(after.id) == ["accepted", "unblocked"]
        assert h.events(after.id)[-1]["actor"] == "batch"

    def test_a_completion_job_added_to_a_finished_batch_need_not_wait(self, h: Harness) -> None:
        batch_id = h.batch(1)
        h.accept(h.make(batch_id=batch_id))
        h.complete(*h.claim())
        after = h.make(after_batch=batch_id)
        assert [w.job_id for w in h.accept(after).wakes] == [after.id]

    def test_a_batch_has_one_completion_job(self, h: Harness) -> None:
        batch_id = h.batch(1)
        h.accept(h.make(after_batch=batch_id))
        error = refused(h, h.make(after_batch=batch_id))
        assert (error.code, error.param) == ("job.unknown_batch", "after_batch")

    def test_a_completion_job_waits_for_its_parents_too(self, h: Harness) -> None:
        batch_id = h.batch(1)
        parent = h.make()
        after = h.child(parent, after_batch=batch_id)
        h.accept(h.make(batch_id=batch_id))
        h.accept(parent, after)
        h.complete(*h.claim())
        assert h.counters(batch_id)[3]
        assert h.status(after.id) is Status.WAITING
        h.complete(*h.claim())
        assert h.status(after.id) is Status.QUEUED

    def test_a_completion_job_waits_for_its_batch_when_its_parents_have_ended(self, h: Harness) -> None:
        batch_id = h.batch(1)
        parent = h.make()
        after = h.child(parent, after_batch=batch_id)
        h.accept(parent, after)
        h.complete(*h.claim())
        assert h.status(after.id) is Status.WAITING
        h.accept(h.make(batch_id=batch_id))
        h.complete(*h.claim())
        assert h.status(after.id) is Status.QUEUED

    @pytest.mark.parametrize("total", [0, -1, 2**31])
    def test_a_batch_of_no_jobs_is_refused_for_nothing_would_finish_it(self, h: Harness, total: int) -> None:
        with pytest.raises(InvalidSubmit) as found:
            h.batch(total)
        assert (found.value.code, found.value.param) == ("job.invalid", "total")

    def test_a_batch_that_has_finished_finishes_once(self, h: Harness) -> None:
        batch_id = h.batch(1, webhook_url=HOOK)
        h.accept(*(h.make(batch_id=batch_id) for _ in range(2)))
        for job in h.claim(2):
            h.complete(job)
        assert len(h.claim(5, queue="notify")) == 1

    def test_cancelling_a_batch_cancels_what_has_not_ended_and_its_completion_job(self, h: Harness) -> None:
        batch_id = h.batch(4)
        jobs = [h.make(batch_id=batch_id) for _ in range(3)]
        child = h.child(jobs[0], batch_id=batch_id)
        after, stranger = h.make(after_batch=batch_id), h.make()
        h.accept(*jobs, child, after, stranger)
        by_id = {job.id: job for job in h.claim(2)}
        h.complete(by_id[jobs[1].id])
        moved = h.store.cancel_batch(batch_id, member_id=None, actor="member:x", reason="wrong class")
        assert set(moved.ids) == {jobs[0].id, jobs[2].id, child.id, after.id}
        assert {status for _, status in moved.jobs} == {Status.CANCELLED}
        assert h.counters(batch_id) == (1, 0, 3, True)
        assert (h.status(jobs[1].id), h.status(stranger.id)) == (Status.COMPLETED, Status.QUEUED)
        assert (h.store.get_batch(batch_id) or {})["cancelled_at"] is not None
        again = h.store.cancel_batch(batch_id, member_id=None, actor="member:x", reason=None)
        assert again.jobs == ()

    def test_a_batch_larger_than_one_cancel_takes_at_once_is_cancelled_whole(self, h: Harness) -> None:
        batch_id = h.batch(600, webhook_url=HOOK)
        h.accept(*(h.make(batch_id=batch_id) for _ in range(600)))
        h.store.cancel_batch(batch_id, member_id=None, actor="member:x", reason=None)
        assert h.counters(batch_id) == (0, 0, 600, True)
        assert len(h.claim(5, queue="notify")) == 1

    def test_a_batch_that_does_not_exist_cancels_nothing(self, h: Harness) -> None:
        assert h.store.cancel_batch(uuid4(), member_id=None, actor="member:x", reason=None).jobs == ()


class TestNotifications:
    def test_notifications_are_jobs_written_with_the_end(self, h: Harness) -> None:
        member = uuid4()
        job = h.make(webhook_url=HOOK, notify_email=MAIL, created_by=member)
        h.accept(job)
        moved = h.complete(*h.claim())
        assert sorted(w.queue for w in moved.wakes) == ["notify", "notify"]
        hook, mail = sorted(h.claim(5, queue="notify"), key=lambda c: c.type == NOTIFY_EMAIL.name)
        assert (hook.payload["url"], hook.payload["subject_id"]) == (HOOK, str(job.id))
        assert (mail.payload["to"], mail.payload["event"]) == (MAIL, "job.completed")
        assert (hook.org_id, hook.created_by) == (job.org_id, member)
        assert hook.max_retries == NOTIFY_WEBHOOK.policy.max_retries
        for note in (hook, mail):
            model = (NOTIFY_WEBHOOK if note is hook else NOTIFY_EMAIL).payload
            model.model_validate(note.payload)
            assert h.events(note.id)[0]["actor"] == "outbox"

    def test_a_retry_notifies_nobody(self, h: Harness) -> None:
        h.accept(h.make(webhook_url=HOOK, notify_email=MAIL))
        assert h.settle(Outcome.retry(h.claim()[0], ERROR, delay=60)).wakes == ()
        assert len(h.store.jobs()) == 1

    def test_a_failure_notifies_by_both_ways_and_a_cancel_by_no_mail(self, h: Harness) -> None:
        failed = h.make(webhook_url=HOOK, notify_email=MAIL)
        h.accept(failed)
        h.fail(*h.claim())
        assert [c.payload["event"] for c in h.claim(5, queue="notify")] == ["job.failed", "job.failed"]
        cancelled = h.make(webhook_url=HOOK, notify_email=MAIL)
        h.accept(cancelled)
        h.cancel(cancelled.id)
        assert [c.payload["event"] for c in h.claim(5, queue="notify")] == ["job.cancelled"]

    def test_children_that_a_failure_ends_notify_too(self, h: Harness) -> None:
        parent = h.make()
        child = h.child(parent, webhook_url=HOOK)
        h.accept(parent, child)
        h.fail(*h.claim())
        [note] = h.claim(5, queue="notify")
        assert (note.payload["event"], note.payload["subject_id"]) == ("job.failed", str(child.id))
