"""What both stores promise of unique keys."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from contract_harness import Harness

from shared.jobs import ACTIVE, InvalidSubmit, ParentEdge, Status, Unique


def refused(h: Harness, *jobs: Any) -> InvalidSubmit:
    before = {row["id"]: row for row in h.store.jobs()}
    with pytest.raises(InvalidSubmit) as found:
        h.accept(*jobs)
    assert {row["id"]: row for row in h.store.jobs()} == before, "all or nothing"
    return found.value


def unique(key: str = "k", **fields: Any) -> Unique:
    return Unique(key, **fields)


class TestUnique:
    def test_a_second_job_of_a_key_is_refused_and_told_of_the_first(self, h: Harness) -> None:
        first = h.make(unique=unique())
        h.accept(first)
        error = refused(h, h.make(), h.make(unique=unique()))
        assert (error.code, error.param, error.existing) == ("job.duplicate", "unique_key", first.id)

    def test_or_the_first_stands_for_it(self, h: Harness) -> None:
        first = h.make(unique=unique(on_conflict="return"))
        h.accept(first)
        other, second = h.make(), h.make(unique=unique(on_conflict="return"))
        accepted = h.accept(other, second)
        assert [row["id"] for row in accepted.rows] == [other.id, first.id]
        assert accepted.existing == {first.id}
        assert [w.job_id for w in accepted.wakes] == [other.id]
        assert h.store.get(second.id) is None

    def test_another_organisations_key_is_free(self, h: Harness) -> None:
        h.accept(h.make(unique=unique()))
        h.accept(h.make(unique=unique(), org_id=uuid4()))
        assert len(h.store.jobs()) == 2

    @pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
    def test_an_ended_job_frees_its_key(self, h: Harness, end: str) -> None:
        first = h.make(unique=unique())
        h.accept(first)
        [claimed] = h.claim()
        {"completed": h.complete, "failed": h.fail, "cancelled": lambda job: h.cancel(job.id)}[end](claimed)
        h.accept(h.make(unique=unique()))

    def test_the_scope_of_states_is_the_submits(self, h: Harness) -> None:
        first = h.make(unique=unique())
        h.accept(first)
        done = frozenset({Status.COMPLETED})
        h.accept(h.make(unique=unique(statuses=done)))
        claimed = [job for job in h.claim(2) if job.id == first.id]
        h.complete(*claimed)
        assert refused(h, h.make(unique=unique(statuses=done))).existing == first.id

    def test_an_active_job_stands_before_an_ended_one(self, h: Harness) -> None:
        every = frozenset(Status)
        old, new = h.make(unique=unique()), h.make(unique=unique())
        h.accept(new if new.id > old.id else old)  # the newer id ends
        h.complete(*h.claim())
        living = old if new.id > old.id else new
        h.accept(living)
        assert refused(h, h.make(unique=unique(statuses=every))).existing == living.id

    def test_the_period_runs_from_acceptance(self, h: Harness) -> None:
        first = h.make(unique=unique(statuses=frozenset(Status), period=60))
        h.accept(first)
        h.complete(*h.claim())
        h.advance(50)
        assert refused(h, h.make(unique=unique(statuses=frozenset(Status), period=60))).existing == first.id
        h.advance(11)
        h.accept(h.make(unique=unique(statuses=frozenset(Status), period=60)))

    def test_two_of_one_submit_are_one_too_many(self, h: Harness) -> None:
        first = h.make(unique=unique())
        error = refused(h, first, h.make(unique=unique()))
        assert (error.param, error.existing) == ("unique_key", first.id)

    def test_or_the_first_of_the_submit_stands_for_the_second(self, h: Harness) -> None:
        first, second = (h.make(unique=unique(on_conflict="return")) for _ in range(2))
        accepted = h.accept(first, second)
        assert [row["id"] for row in accepted.rows] == [first.id, first.id]
        assert len(h.store.jobs()) == 1

    def test_two_of_one_submit_are_both_the_earlier_one_where_there_is_one(self, h: Harness) -> None:
        standing = h.make(unique=unique())
        h.accept(standing)
        twins = [h.make(unique=unique(on_conflict="return")) for _ in range(2)]
        assert [row["id"] for row in h.accept(*twins).rows] == [standing.id, standing.id]

    def test_what_was_just_accepted_is_not_called_existing(self, h: Harness) -> None:
        first, second = (h.make(unique=unique(on_conflict="return")) for _ in range(2))
        assert first.id not in h.accept(first, second).existing

    def test_a_child_waits_for_the_job_that_stands_for_its_parent(self, h: Harness) -> None:
        standing = h.make(unique=unique())
        h.accept(standing)
        parent = h.make(unique=unique(on_conflict="return"))
        child = h.child(parent)
        h.accept(parent, child)
        assert [w.job_id for w in h.complete(*h.claim()).wakes] == [child.id]

    def test_a_child_may_name_a_twin_whose_first_an_earlier_job_stands_for(self, h: Harness) -> None:
        standing = h.make(unique=unique())
        h.accept(standing)
        first, second = (h.make(unique=unique(on_conflict="return")) for _ in range(2))
        child = h.child(second)
        h.accept(first, second, child)
        assert h.status(child.id) is Status.WAITING

    def test_a_child_may_name_two_parents_that_turn_out_to_be_one(self, h: Harness) -> None:
        first, second = (h.make(unique=unique(on_conflict="return")) for _ in range(2))
        child = h.child(first, second)
        h.accept(first, second, child)
        assert [w.job_id for w in h.complete(*h.claim()).wakes] == [child.id]

    def test_a_job_that_would_come_to_wait_for_itself_is_refused(self, h: Harness) -> None:
        second = h.make(unique=unique(on_conflict="return"))
        first = h.make(unique=unique(on_conflict="return"), parents=(ParentEdge(second.id),))
        assert refused(h, first, second).code == "job.dependency_cycle"

    def test_states_that_a_new_job_is_not_in_are_no_conflict_within_a_submit_either(self, h: Harness) -> None:
        h.accept(*(h.make(unique=unique(statuses=frozenset({Status.PROCESSING}))) for _ in range(2)))

    def test_every_active_state_keeps_the_key(self, h: Harness) -> None:
        parent = h.make()
        waiting = h.child(parent, unique=unique())
        h.accept(parent, waiting)
        seen: set[Status] = set()
        for step in (lambda: h.complete(*h.claim()), lambda: h.claim(queue="grading"), lambda: None):
            seen.add(h.status(waiting.id))
            assert refused(h, h.make(unique=unique())).existing == waiting.id
            step()
        assert seen == ACTIVE
