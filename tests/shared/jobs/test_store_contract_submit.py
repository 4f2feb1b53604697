"""What both stores refuse of jobs that are each well formed: circles through batches, other organisations' batches,
ids that are taken; and what text they keep."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from contract_harness import Harness, PostgresHarness

from shared import ids
from shared.contracts import JOB_TYPES, Contract, JobType, Registry
from shared.jobs import InvalidSubmit, NewBatch, NewJob, ParentEdge, Status, Unique, _sql, validate
from shared.jobs.submit import _plan

KEY = Unique("k", on_conflict="return")


def refused(h: Harness, *jobs: NewJob) -> tuple[str, str]:
    before = {row["id"]: row for row in h.store.jobs()}
    with pytest.raises(InvalidSubmit) as found:
        h.accept(*jobs)
    assert {row["id"]: row for row in h.store.jobs()} == before, "all or nothing"
    return found.value.code, found.value.param


class TestCirclesThroughBatches:
    CIRCLE = ("job.dependency_cycle", "after_batch")

    def test_a_late_job_of_a_batch_that_waits_for_its_completion_job(self, h: Harness) -> None:
        batch_id = h.batch(1)
        after = h.make(after_batch=batch_id)
        h.accept(after)
        assert refused(h, h.child(after, batch_id=batch_id)) == self.CIRCLE

    def test_over_other_jobs_older_and_new(self, h: Harness) -> None:
        batch_id = h.batch(1)
        after = h.make(after_batch=batch_id)
        older = h.child(after)
        h.accept(after, older)
        new = h.child(older)
        assert refused(h, h.make(), new, h.child(new, batch_id=batch_id)) == self.CIRCLE

    def test_two_batches_whose_completion_jobs_are_in_each_other(self, h: Harness) -> None:
        one, two = h.batch(1), h.batch(1)
        jobs = h.make(batch_id=one, after_batch=two), h.make(batch_id=two, after_batch=one)
        assert refused(h, *jobs) == self.CIRCLE
        h.accept(jobs[0])
        assert refused(h, jobs[1]) == self.CIRCLE
        assert (h.store.get_batch(one) or {})["completion_job_id"] is None

    def test_a_completion_job_in_a_batch_that_older_jobs_of_its_own_wait_for(self, h: Harness) -> None:
        one, two = h.batch(1), h.batch(1)
        after_two = h.make(after_batch=two)
        h.accept(after_two, h.child(after_two, batch_id=one))
        assert refused(h, h.make(after_batch=one, batch_id=two)) == self.CIRCLE

    def test_what_only_looks_like_a_circle_is_accepted(self, h: Harness) -> None:
        batch_id = h.batch(2)
        after, parent = h.make(after_batch=batch_id), h.make()
        waiting = h.child(parent)
        h.accept(after, parent, waiting)
        h.accept(h.child(waiting, batch_id=batch_id), h.child(after), h.child(waiting, after))

    def test_a_completion_job_that_has_ended_waits_for_nothing(self, h: Harness) -> None:
        batch_id = h.batch(1)
        after, other = h.make(after_batch=batch_id), h.make()
        child = h.make(parents=(ParentEdge(after.id, "run"), ParentEdge(other.id)))
        h.accept(after, other, child)
        h.cancel(after.id)
        late = h.child(child, batch_id=batch_id)
        h.accept(late)
        assert h.status(late.id) is Status.WAITING

    def test_two_submits_at_once_do_not_close_one_together(self, h: Harness) -> None:
        if not isinstance(h, PostgresHarness):
            return  # one at a time
        one, two = h.batch(1), h.batch(1)
        after_one, after_two = h.make(after_batch=one), h.make(after_batch=two)
        h.accept(after_one, after_two)
        found: list[Any] = []
        second = threading.Thread(target=lambda: found.append(refused_or_none(h.child(after_one, batch_id=two))))

        def refused_or_none(job: NewJob) -> str | None:
            try:
                h.accept(job)
            except InvalidSubmit as e:
                return e.code
            return None

        with h.store.transaction():
            h.accept(h.child(after_two, batch_id=one))
            second.start()
            time.sleep(0.3)
        second.join(10)
        assert found == ["job.dependency_cycle"]


class TestBatchesOfOthers:
    UNKNOWN = ("job.unknown_batch", "batch_id")

    @pytest.mark.parametrize("exists", [True, False])
    def test_with_all_that_comes_with_it(self, h: Harness, exists: bool) -> None:
        batch_id = h.batch(1, org_id=uuid4()) if exists else uuid4()
        own, parent = h.batch(1), h.make()
        assert refused(h, h.make(batch_id=batch_id)) == self.UNKNOWN
        assert refused(h, h.make(), h.make(batch_id=batch_id)) == self.UNKNOWN
        assert refused(h, h.make(batch_id=own), parent, h.child(parent, batch_id=batch_id)) == self.UNKNOWN
        h.accept(parent)
        assert refused(h, h.child(parent, batch_id=batch_id)) == self.UNKNOWN
        assert h.row(parent.id)["has_children"] is False
        assert h.complete(*h.claim()).wakes == ()

    @pytest.mark.parametrize("jobs", [1, 3])
    def test_a_batch_of_the_same_transaction_is_known(self, h: Harness, jobs: int) -> None:
        with h.store.transaction():
            batch_id = h.batch(jobs)
            h.accept(*(h.make(batch_id=batch_id) for _ in range(jobs)))
        assert {row["batch_id"] for row in h.store.jobs()} == {batch_id}

    def test_one_submit_may_be_of_two_organisations_with_a_batch_each(self, h: Harness) -> None:
        other = uuid4()
        theirs, ours = h.batch(1, org_id=other), h.batch(1)
        h.accept(h.make(batch_id=ours), h.make(batch_id=theirs, org_id=other), h.make())
        assert refused(h, h.make(batch_id=theirs), h.make(batch_id=theirs, org_id=other)) == self.UNKNOWN


class TestTaken:
    def test_an_id_that_is_taken_is_refused(self, h: Harness) -> None:
        job = h.make()
        h.accept(job)
        assert refused(h, h.make(id=job.id)) == ("job.invalid", "id")
        assert refused(h, h.make(), h.make(id=job.id)) == ("job.invalid", "id")

    def test_so_is_a_batchs(self, h: Harness) -> None:
        batch_id = h.batch(1)
        with pytest.raises(InvalidSubmit) as found:
            h.store.insert_batch(NewBatch(batch_id, h.org_id, None, "x", 1))
        assert (found.value.code, found.value.param) == ("job.invalid", "id")


class TestOutOfBounds:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"parents": (ParentEdge(uuid4(), "explode"),)}, "on_failure"),  # type: ignore[arg-type]
            ({"unique": Unique("k", on_conflict="both")}, "unique_conflict"),  # type: ignore[arg-type]
            ({"unique": Unique("\ud800")}, "unique_key"),
            ({"concurrency_key": "\ud800"}, "concurrency_key"),
            ({"concurrency_limit": 2**40}, "concurrency_limit"),
            ({"metadata": {"a\0": 1}}, "metadata"),
            ({"metadata": {"n": 2**70}}, "metadata"),
            ({"metadata": {1: 2}}, "metadata"),
            ({"metadata": {"o": object()}}, "metadata"),
        ],
    )
    def test_the_field_is_named(self, h: Harness, fields: dict[str, Any], param: str) -> None:
        assert refused(h, h.make(), h.make(**fields)) == ("job.invalid", param)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"kind": "a\0"}, "kind"),
            ({"webhook_url": "\ud800"}, "webhook_url"),
            ({"metadata": {"a": ["\0"]}}, "metadata"),
        ],
    )
    def test_a_batchs_too(self, h: Harness, fields: dict[str, Any], param: str) -> None:
        batch = {"kind": "x", "created_by": None, "total": 1, "org_id": h.org_id, **fields}
        with pytest.raises(InvalidSubmit) as found:
            h.store.insert_batch(NewBatch(id=ids.new_uuid(), **batch))
        assert (found.value.code, found.value.param) == ("job.invalid", param)

    def test_a_backslash_is_no_nul(self, h: Harness) -> None:
        job = h.make(metadata={"path": "C:\\u0000"})
        h.accept(job)
        assert h.row(job.id)["metadata"] == job.metadata


class Free(Contract):
    text: str = ""
    more: Any = None


REGISTRY = Registry()
REGISTRY.declare(JobType("free.text", "free", Free, Free, title="Free"))


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"text": "Emma\0"}, "payload.text"),
        ({"text": "Emma\ud800"}, "payload.text"),
        ({"more": {"a": [1, "Emma\0"]}}, "payload.more.a.1"),
        ({"more": {"a": [1, "Emma\ud800"]}}, "payload.more.a.1"),
        ({"more": {"a": {"Emma\0": 1}}}, "payload.more.a"),
        ({"more": 2**70}, "payload"),
        ({"more": object()}, "payload"),
    ],
)
def test_a_payload_that_cannot_be_stored_is_refused_with_its_place_named(payload: Any, param: str) -> None:
    with pytest.raises(InvalidSubmit) as found:
        validate(NewJob(uuid4(), "free.text", payload, uuid4()), REGISTRY)
    assert (found.value.code, found.value.param) == ("job.invalid_payload", param)
    assert "Emma" not in str(found.value)
    assert validate(NewJob(uuid4(), "free.text", {"text": "\\u0000"}, uuid4()), REGISTRY).payload["text"] == "\\u0000"


class TestUnique:
    def test_of_two_edges_that_become_one_the_stricter_counts(self, h: Harness) -> None:
        first, second = h.make(unique=KEY), h.make(unique=KEY)
        child = h.make(parents=(ParentEdge(first.id, "run"), ParentEdge(second.id, "cancel")))
        h.accept(first, second, child)
        h.fail(*h.claim())
        assert h.status(child.id) is Status.CANCELLED

    def test_a_circle_that_comes_of_standing_jobs_is_refused(self, h: Harness) -> None:
        second, other = h.make(unique=KEY), h.make()
        first = h.make(unique=KEY, parents=(ParentEdge(other.id),))
        other = h.make(id=other.id, parents=(ParentEdge(second.id),))
        assert refused(h, first, second, other)[0] == "job.dependency_cycle"

    def test_a_twin_is_looked_for_in_its_own_scope(self, h: Harness) -> None:
        done = h.make(unique=KEY)
        h.accept(done)
        h.complete(*h.claim())
        ended = Unique("k", statuses=frozenset({Status.COMPLETED}), on_conflict="return")
        first, second = h.make(unique=KEY), h.make(unique=ended)
        accepted = h.accept(first, second)
        assert [row["id"] for row in accepted.rows] == [first.id, done.id]
        assert accepted.existing == {done.id}

    def test_a_waiting_twin_is_waiting(self, h: Harness) -> None:
        parent = h.make()
        first = h.child(parent, unique=KEY)
        queued, waiting = (
            h.make(unique=Unique("k", statuses=frozenset({status}), on_conflict="return"))
            for status in (Status.QUEUED, Status.WAITING)
        )
        accepted = h.accept(parent, first, waiting, queued)
        assert [row["id"] for row in accepted.rows] == [parent.id, first.id, first.id, queued.id]
        assert accepted.existing == frozenset()


def _statements(*jobs: NewJob) -> list[str]:
    """The statements of a submit whose parents are queued and whose batches have not finished."""
    run: list[str] = []
    plan = _plan(jobs, JOB_TYPES)
    sql, parameters = next(plan)
    while True:
        run.append(sql)
        if "payload" in parameters:
            plan.close()
            return run
        found = parameters["ids"] if sql == _sql.ADOPT else [parameters["id"]]
        sql, parameters = plan.send(
            [{"id": id, "org_id": jobs[0].org_id, "status": "queued", "finished": False} for id in found]
        )


@pytest.mark.parametrize(
    ("fields", "most"), [({}, 1), ({"batch_id": UUID(int=1)}, 1), ({"parents": (ParentEdge(UUID(int=2)),)}, 2)]
)
def test_no_statement_is_run_that_is_not_needed(fields: dict[str, Any], most: int) -> None:
    h = Harness()
    assert len(_statements(h.make(**fields))) == most
    assert len(_statements(h.make(**fields), h.make(**fields))) == most


def test_a_batch_with_its_completion_job_costs_one_statement_more_than_without() -> None:
    h, batch_id = Harness(), uuid4()
    jobs = [h.make(batch_id=batch_id) for _ in range(3)]
    assert len(_statements(*jobs)) == 1
    assert len(_statements(*jobs, h.make(after_batch=batch_id))) == 2
