"""What both stores promise of the claim: who is next, and who must wait for a limit, a pause, a rate or a key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from contract_harness import ERROR, Harness

from shared.contracts import GRADING_QUIZ
from shared.jobs import Outcome, Priority, Status
from shared.jobs.limits import EVERY, Limit, LimitTarget
from shared.jobs.store import AGE_SECONDS, WorkerIdentity

QUEUE = LimitTarget("ocr")
HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


class TestOrder:
    def test_a_claimed_job_has_a_lease_and_the_next_attempt(self, h: Harness) -> None:
        job = h.make(max_retries=5, time_limit=77)
        h.accept(job)
        [claimed] = h.claim()
        assert (claimed.id, claimed.attempt, claimed.max_retries, claimed.time_limit) == (job.id, 1, 5, 77.0)
        assert claimed.payload["document_id"] == job.payload["document_id"]
        row = h.row(job.id)
        assert row["status"] == Status.PROCESSING
        assert row["lease_until"] - row["started_at"] == timedelta(seconds=30)
        assert claimed.event_seq == row["event_seq"] == 2
        assert h.claim() == []

    def test_no_more_are_claimed_than_were_asked_for(self, h: Harness) -> None:
        h.accept(*(h.make() for _ in range(7)))
        assert [len(h.claim(3)) for _ in range(4)] == [3, 3, 1, 0]

    def test_high_comes_before_normal_before_low(self, h: Harness) -> None:
        low, normal, high = (h.make(priority=p) for p in (LOW, NORMAL, HIGH))
        h.accept(low, normal, high)
        assert h.order(3) == [high.id, normal.id, low.id]

    def test_a_high_job_is_next_however_deep_the_backlog(self, h: Harness) -> None:
        h.accept(*(h.make(priority=p) for p in (NORMAL, LOW) for _ in range(500)))
        h.claim(3)
        high = h.make(priority=HIGH)
        h.accept(high)
        assert h.order(1) == [high.id]

    def test_a_high_job_of_a_busy_organisation_goes_before_a_normal_one_of_an_idle_one(self, h: Harness) -> None:
        h.accept(*(h.make() for _ in range(20)))
        h.claim(5)
        idle, high = h.make(org_id=uuid4()), h.make(priority=HIGH)
        h.accept(idle, high)
        assert h.order(2) == [high.id, idle.id]

    def test_of_equals_the_oldest_is_next(self, h: Harness) -> None:
        jobs = [h.make() for _ in range(4)]
        for job in reversed(jobs):
            h.accept(job)
        assert h.order(4) == [job.id for job in reversed(jobs)]

    def test_a_job_that_falls_due_takes_its_place_by_when_it_did(self, h: Harness) -> None:
        later, first = h.make(run_at=h.now() + timedelta(seconds=50)), h.make()
        h.accept(later)
        h.accept(first)
        h.advance(60)
        last = h.make()
        h.accept(last)
        assert h.order(3) == [first.id, later.id, last.id]

    def test_a_queue_gives_only_its_own_jobs(self, h: Harness) -> None:
        h.accept(h.make(type=GRADING_QUIZ.name))
        assert h.claim(queue="ocr") == []
        assert len(h.claim(queue="grading")) == 1

    def test_a_process_gets_only_the_types_that_it_can_do(self, h: Harness) -> None:
        h.accept(h.make(priority=HIGH))
        assert h.claim(types=["ocr.other"]) == []
        assert h.claim(types=[]) == []
        assert len(h.claim(types=["ocr.other", "ocr.document"])) == 1


class TestAgeing:
    """The bound: after 2 × AGE_SECONDS of waiting, a low job is level with new high ones, and older than they."""

    def test_a_low_job_is_level_with_new_high_ones_after_twice_the_age(self, h: Harness) -> None:
        low = h.make(priority=LOW)
        h.accept(low)
        h.advance(2 * AGE_SECONDS)
        high = h.make(priority=HIGH)
        h.accept(high)
        assert h.order(2) == [low.id, high.id]

    def test_and_not_before(self, h: Harness) -> None:
        low = h.make(priority=LOW)
        h.accept(low)
        h.advance(2 * AGE_SECONDS - 5)
        high = h.make(priority=HIGH)
        h.accept(high)
        assert h.order(2) == [high.id, low.id]

    def test_no_stream_of_high_jobs_starves_a_low_one(self, h: Harness) -> None:
        low = h.make(priority=LOW)
        h.accept(low)
        for started in range(100):
            h.accept(h.make(priority=HIGH), h.make(priority=HIGH))  # twice what one worker can do
            [claimed] = h.claim()
            if claimed.id == low.id:
                assert started * 60 <= 2 * AGE_SECONDS
                return
            h.complete(claimed)
            h.advance(60)
        pytest.fail("the low job never ran")

    def test_waiting_lifts_no_job_above_high(self, h: Harness) -> None:
        normal, high = h.make(), h.make(priority=HIGH)
        h.accept(high)
        h.accept(normal)
        h.advance(10 * AGE_SECONDS)
        assert h.order(2) == [high.id, normal.id]


class TestFairness:
    def test_five_thousand_jobs_of_one_organisation_delay_anothers_by_one_job_a_slot(self, h: Harness) -> None:
        big, small, slots = uuid4(), uuid4(), 3
        h.accept(*(h.make(org_id=big) for _ in range(5000)))
        running = list(h.claim(slots))
        single = h.make(org_id=small)
        h.accept(single)
        before = 0
        while True:
            h.complete(running.pop(0))
            running += h.claim()
            if running[-1].id == single.id:
                break
            before += 1
            assert before <= slots

    def test_organisations_take_turns(self, h: Harness) -> None:
        organisations = [uuid4() for _ in range(3)]
        h.accept(*(h.make(org_id=org) for org in organisations for _ in range(10)))
        started = [h.claim()[0].org_id for _ in range(9)]
        assert [set(started[n : n + 3]) for n in (0, 3, 6)] == [set(organisations)] * 3

    def test_one_claim_of_many_is_shared_too(self, h: Harness) -> None:
        organisations = [uuid4() for _ in range(3)]
        h.accept(*(h.make(org_id=org) for org in organisations for _ in range(10)))
        started = [job.org_id for job in h.claim(6)]
        assert [started.count(org) for org in organisations] == [2, 2, 2]

    def test_jobs_in_flight_count_against_their_organisation(self, h: Harness) -> None:
        big, small = uuid4(), uuid4()
        h.accept(*(h.make(org_id=big) for _ in range(10)))
        h.claim(3)
        h.accept(*(h.make(org_id=small) for _ in range(3)))
        assert {c.org_id for c in h.claim(3)} == {small}


class TestPause:
    @pytest.mark.parametrize("whose", ["queue", "organisation", "every organisation", "key", "every key"])
    def test_nothing_starts_while_paused_and_all_does_after(self, h: Harness, whose: str) -> None:
        target = {
            "queue": QUEUE,
            "organisation": LimitTarget("ocr", h.org_id),
            "every organisation": LimitTarget("ocr", EVERY),
            "key": LimitTarget("ocr", h.org_id, "k"),
            "every key": LimitTarget("ocr", EVERY, ""),
        }[whose]
        h.accept(h.make(concurrency_key="k"))
        h.store.pause(target, actor="member:x", reason="too hot")
        assert h.claim() == []
        [stored] = h.store.limits("ocr")
        assert (stored.target, stored.paused_by, stored.pause_reason) == (target, "member:x", "too hot")
        assert stored.paused_at is not None
        assert h.store.resume(target)
        assert not h.store.resume(target)
        assert h.store.limits() == []
        h.store.unhold()
        assert len(h.claim()) == 1

    def test_what_runs_goes_on(self, h: Harness) -> None:
        h.accept(h.make())
        [claimed] = h.claim()
        h.store.pause(QUEUE, actor="member:x")
        assert h.complete(claimed).jobs

    def test_a_pause_of_one_organisation_leaves_the_others(self, h: Harness) -> None:
        other = h.make(org_id=uuid4())
        h.accept(h.make(), other)
        h.store.pause(LimitTarget("ocr", h.org_id), actor="member:x")
        assert [job.id for job in h.claim(10)] == [other.id]

    def test_a_pause_of_one_queue_leaves_the_others(self, h: Harness) -> None:
        h.accept(h.make(), h.make(type=GRADING_QUIZ.name))
        h.store.pause(QUEUE, actor="member:x")
        assert h.claim() == []
        assert h.claim(queue="grading")

    def test_pausing_again_changes_who_and_why_but_not_since_when(self, h: Harness) -> None:
        h.store.pause(QUEUE, actor="member:x", reason="too hot")
        [first] = h.store.limits()
        h.store.pause(QUEUE, actor="member:y")
        [second] = h.store.limits()
        assert (second.paused_at, second.paused_by, second.pause_reason) == (first.paused_at, "member:y", None)

    def test_a_pause_and_the_numbers_of_a_limit_do_not_touch_each_other(self, h: Harness) -> None:
        h.store.pause(QUEUE, actor="member:x")
        h.limit(Limit(QUEUE, max_running=2))
        h.limit(Limit(QUEUE, start_limit=5, start_period=1))
        [stored] = h.store.limits()
        assert (stored.max_running, stored.start_limit, stored.paused_by) == (None, 5, "member:x")
        h.store.resume(QUEUE)
        [stored] = h.store.limits()
        assert (stored.start_limit, stored.start_period, stored.paused_at) == (5, 1.0, None)
        h.limit(Limit(QUEUE))
        assert h.store.limits() == []

    def test_a_paused_key_stays_paused_where_it_has_a_limit_of_its_own(self, h: Harness) -> None:
        h.limit(Limit(LimitTarget("ocr", h.org_id, "k"), max_running=3))
        h.store.pause(LimitTarget("ocr", EVERY, "k"), actor="member:x")
        h.accept(h.make(concurrency_key="k"))
        assert h.claim() == []

    def test_a_job_that_runs_alone_is_paused_as_any_other(self, h: Harness) -> None:
        h.accept(h.make())
        h.crash(2)
        h.store.pause(QUEUE, actor="member:x")
        assert h.claim(alone=True) == []
        h.store.resume(QUEUE)
        assert len(h.claim(alone=True)) == 1


class TestLimits:
    def test_a_queue_runs_no_more_than_it_may(self, h: Harness) -> None:
        h.limit(Limit(QUEUE, max_running=2))
        h.accept(*(h.make() for _ in range(5)))
        first = h.claim(10)
        assert (len(first), first.limited) == (2, True)
        assert h.claim(10) == []
        h.complete(first[0])
        assert len(h.claim(10)) == 1

    def test_each_organisation_runs_no_more_than_it_may_and_one_of_them_less(self, h: Harness) -> None:
        small, large = uuid4(), uuid4()
        h.limit(
            Limit(LimitTarget("ocr", EVERY), max_running=3),
            Limit(LimitTarget("ocr", small), max_running=1),
        )
        h.accept(*(h.make(org_id=org) for org in (small, large) for _ in range(5)))
        started = [job.org_id for job in h.claim(10)]
        assert (started.count(small), started.count(large)) == (1, 3)

    def test_an_organisation_of_its_own_limit_may_run_more_than_the_others(self, h: Harness) -> None:
        large = uuid4()
        h.limit(Limit(LimitTarget("ocr", EVERY), max_running=1), Limit(LimitTarget("ocr", large), max_running=4))
        h.accept(*(h.make(org_id=large) for _ in range(6)))
        assert len(h.claim(10)) == 4

    def test_a_limited_queue_keeps_the_order(self, h: Harness) -> None:
        h.limit(Limit(QUEUE, max_running=100))
        low, normal, high = (h.make(priority=p) for p in (LOW, NORMAL, HIGH))
        other = h.make(org_id=uuid4(), priority=LOW)
        h.accept(low, normal, high, other)
        assert h.order(4) == [high.id, normal.id, other.id, low.id]

    def test_a_limit_of_none_is_a_stop(self, h: Harness) -> None:
        h.limit(Limit(QUEUE, max_running=0))
        h.accept(h.make())
        assert h.claim() == []

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"max_running": -1}, "max_running"),
            ({"start_limit": 5}, "go together"),
            ({"start_limit": 0, "start_period": 1.0}, "start_limit"),
            ({"start_limit": 1, "start_period": 0.0}, "start_period"),
        ],
    )
    def test_numbers_that_are_no_limit_are_refused(self, h: Harness, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            h.limit(Limit(QUEUE, **fields))


class TestStartRate:
    @pytest.mark.parametrize("whose", ["queue", "organisation", "key"])
    def test_starts_keep_to_their_number_in_a_period(self, h: Harness, whose: str) -> None:
        target = {"queue": QUEUE, "organisation": LimitTarget("ocr", EVERY), "key": LimitTarget("ocr", EVERY, "")}[
            whose
        ]
        h.limit(Limit(target, start_limit=3, start_period=60, max_running=100))
        h.accept(*(h.make(concurrency_key="k", concurrency_limit=100) for _ in range(10)))
        assert len(h.claim(10)) == 3
        assert h.claim(10) == []
        h.advance(20)
        h.store.unhold()
        assert len(h.claim(10)) == 1
        assert h.claim(10) == []
        h.advance(600)
        h.store.unhold()
        assert len(h.claim(10)) == 3, "the burst is no more than the number, however long nothing started"

    def test_a_claimer_is_told_when_the_next_start_is_due(self, h: Harness) -> None:
        h.limit(Limit(QUEUE, start_limit=1, start_period=10))
        h.accept(h.make(), h.make())
        assert len(h.claim(10)) == 1
        wait = h.claim(10).wait
        assert wait is not None
        assert 8 < wait <= 10
        h.advance(wait)
        assert len(h.claim(10)) == 1

    def test_one_organisations_rate_leaves_the_others(self, h: Harness) -> None:
        slow = uuid4()
        h.limit(Limit(LimitTarget("ocr", slow), start_limit=1, start_period=60))
        h.accept(*(h.make(org_id=slow) for _ in range(3)), *(h.make() for _ in range(3)))
        assert len(h.claim(10)) == 4


class TestKeys:
    def test_a_key_runs_as_many_as_its_jobs_say_in_each_organisation(self, h: Harness) -> None:
        jobs = [h.make(concurrency_key="pupil-7", concurrency_limit=2) for _ in range(5)]
        other = h.make(org_id=uuid4(), concurrency_key="pupil-7")
        h.accept(*jobs, other)
        assert {job.id for job in h.claim(10)} == {jobs[0].id, jobs[1].id, other.id}
        assert h.claim(10) == []

    def test_jobs_behind_a_taken_key_are_not_held_up(self, h: Harness) -> None:
        blocked = [h.make(concurrency_key="k") for _ in range(80)]
        free = h.make()
        h.accept(*blocked, free)
        assert h.order(3) == [blocked[0].id, free.id]

    def test_one_job_after_another_of_a_key_runs_and_each_end_wakes_the_next(self, h: Harness) -> None:
        jobs = [h.make(concurrency_key="k") for _ in range(4)]
        for job in jobs:
            h.accept(job)
        ran = []
        for n in range(4):
            [claimed] = h.claim(10)
            ran.append(claimed.id)
            h.claim(10)
            assert [w.job_id for w in h.complete(claimed).wakes] == [job.id for job in jobs[n + 1 : n + 2]]
        assert ran == [job.id for job in jobs]

    def test_the_best_of_a_keys_jobs_is_next_when_the_key_comes_free(self, h: Harness) -> None:
        h.accept(*(h.make(concurrency_key="k") for _ in range(3)))
        urgent = h.make(concurrency_key="k", priority=HIGH)
        [running] = h.claim(10)
        h.accept(urgent)
        assert h.claim(10) == []
        assert [w.job_id for w in h.complete(running).wakes] == [urgent.id]
        assert [job.id for job in h.claim(10)] == [urgent.id]

    def test_of_a_keys_held_jobs_the_one_lifted_by_waiting_is_next(self, h: Harness) -> None:
        low = h.make(concurrency_key="k", priority=LOW)
        h.accept(h.make(concurrency_key="k"))
        [running] = h.claim()
        h.accept(low)
        h.claim()
        h.advance(2 * AGE_SECONDS + 1)
        h.accept(h.make(concurrency_key="k", priority=HIGH))
        h.claim()
        h.complete(running)
        assert h.order(1) == [low.id]

    def test_a_held_job_is_not_starved_by_those_that_come_after_it(self, h: Harness) -> None:
        held = h.make(concurrency_key="k")
        h.accept(h.make(concurrency_key="k"))
        [running] = h.claim()
        h.accept(held)
        h.claim()  # sets it apart
        for _ in range(5):
            h.accept(h.make(concurrency_key="k"))  # after it, and the key is still taken
            h.complete(running)
            [running] = h.claim()
            if running.id == held.id:
                return
        pytest.fail("later jobs of its key ran before it, one after another")

    def test_a_job_of_the_key_that_is_not_due_takes_nobodys_place(self, h: Harness) -> None:
        first, second = h.make(concurrency_key="k"), h.make(concurrency_key="k")
        h.accept(first)
        [running] = h.claim()
        h.accept(second)
        h.claim()
        h.settle(Outcome.retry(running, ERROR, delay=900))
        h.store.unhold()
        assert h.order(1) == [second.id], "while the first waits for its retry"

    @pytest.mark.parametrize("how", ["retry", "snooze", "release", "cancel", "crash", "orphan"])
    def test_however_an_attempt_ends_its_key_comes_free(self, h: Harness, how: str) -> None:
        first, second = h.make(concurrency_key="k"), h.make(concurrency_key="k", priority=HIGH)
        h.accept(first)
        [running] = h.claim()
        h.accept(second)
        assert h.claim() == []
        if how == "cancel":
            h.cancel(first.id)
        elif how == "crash":
            h.advance(31)
            h.rescue()
        elif how == "orphan":
            h.advance(20)
            h.store.release_orphans(WorkerIdentity(h.row(first.id)["worker_id"], "ocr", "here", 1, 1), [], 30)
        else:
            h.settle(
                {
                    "retry": Outcome.retry(running, ERROR, delay=60),
                    "snooze": Outcome.snoozed(running, "later", 60),
                    "release": Outcome.released(running),
                }[how]
            )
        if how in ("release", "crash", "orphan"):
            # The first is in line again, and goes before the second or after it: the key is not lost either way.
            assert len(h.claim(10)) == 1
        else:
            assert h.order(1) == [second.id]

    def test_a_sweep_lets_nobody_go_whose_key_is_taken(self, h: Harness) -> None:
        h.accept(h.make(concurrency_key="k"), h.make(concurrency_key="k"))
        h.claim(10)
        assert h.store.unhold() == ()
        assert h.claim(10) == []

    def test_a_rule_for_a_key_goes_before_what_its_jobs_say(self, h: Harness) -> None:
        h.limit(Limit(LimitTarget("ocr", h.org_id, "k"), max_running=3))
        h.accept(*(h.make(concurrency_key="k") for _ in range(5)))
        assert len(h.claim(10)) == 3

    @pytest.mark.parametrize(
        ("particular", "general"),
        [
            (("own", "k"), ("own", "")),
            (("own", ""), ("every", "k")),
            (("every", "k"), ("every", "")),
        ],
    )
    def test_the_most_particular_rule_for_a_key_holds(
        self, h: Harness, particular: tuple[str, str], general: tuple[str, str]
    ) -> None:
        def target(whose: str, key: str) -> LimitTarget:
            return LimitTarget("ocr", h.org_id if whose == "own" else EVERY, key)

        h.limit(Limit(target(*particular), max_running=2), Limit(target(*general), max_running=4))
        h.accept(*(h.make(concurrency_key="k") for _ in range(6)))
        assert len(h.claim(10)) == 2

    def test_a_key_and_its_organisations_limit_hold_together(self, h: Harness) -> None:
        h.limit(Limit(LimitTarget("ocr", EVERY), max_running=3))
        h.accept(
            *(h.make(concurrency_key=f"k{n % 2}", concurrency_limit=1) for n in range(6)), *(h.make() for _ in range(6))
        )
        started = h.claim(10)
        keys: list[Any] = [job.concurrency_key for job in started]
        assert len(started) == 3
        assert max(keys.count("k0"), keys.count("k1")) <= 1

    def test_a_held_job_can_be_cancelled(self, h: Harness) -> None:
        jobs = [h.make(concurrency_key="k") for _ in range(2)]
        h.accept(*jobs)
        [running] = h.claim(10)
        [held] = {job.id for job in jobs} - {running.id}
        h.cancel(held)
        assert h.complete(running).wakes == ()
        assert h.claim(10) == []

    def test_a_job_that_runs_alone_waits_for_its_key(self, h: Harness) -> None:
        alone = h.make(concurrency_key="k")
        h.accept(alone)
        h.crash(2)
        h.accept(h.make(concurrency_key="k"))
        [running] = h.claim()
        assert h.claim(alone=True) == []
        h.complete(running)
        assert [job.id for job in h.claim(alone=True)] == [alone.id]
