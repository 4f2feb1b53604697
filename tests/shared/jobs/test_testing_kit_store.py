"""The kit for people who write job types: what was enqueued, and running it all on the in-memory store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from kit_jobs import (
    OTHER,
    REGISTRY,
    Payload,
    Result,
    fine,
    handler,
    job,
    raising,
    swallowing,
)

from shared import ids
from shared.db import SyncPool
from shared.jobs import (
    Done,
    JobContext,
    NewJob,
    ParentEdge,
    PermanentError,
    RetryableError,
    Snooze,
    Status,
    submit,
)
from shared.jobs.limits import Limit, LimitTarget
from shared.jobs.testing import (
    ManualClock,
    MemoryStore,
    PostgresStore,
    TestingKitMisuse,
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
)


class TestEnqueued:
    @pytest.fixture(params=["memory", "postgres store", "connection"])
    def source(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "memory":
            return MemoryStore(REGISTRY)
        pool = request.getfixturevalue("pool")
        if request.param == "postgres store":
            return PostgresStore(pool, REGISTRY)
        return request.getfixturevalue("connection")

    @pytest.fixture
    def connection(self, pool: SyncPool) -> Any:
        with pool.connection() as conn:
            yield conn

    def submit(self, source: Any, *jobs: NewJob) -> None:
        if isinstance(source, psycopg.Connection):
            submit(source, jobs, REGISTRY)
        else:
            source.submit(jobs)

    def test_jobs_are_found_by_what_they_are_like(self, source: Any) -> None:
        owner = uuid4()
        a, b = job(1, payload={"n": 1, "owner": owner}), job(2)
        c = job(3, type=OTHER.name)
        self.submit(source, a, b, c)
        assert {row["id"] for row in enqueued(source)} == {a.id, b.id, c.id}
        assert [row["id"] for row in enqueued(source, type="kit.other")] == [c.id]
        assert [row["id"] for row in enqueued(source, queue="other")] == [c.id]
        assert [row["id"] for row in enqueued(source, org_id=b.org_id)] == [b.id]
        assert [row["id"] for row in enqueued(source, payload_contains={"owner": owner})] == [a.id]
        assert enqueued(source, payload_contains={"absent": None}) == []
        assert len(enqueued(source, statuses=[Status.QUEUED])) == 3
        assert len(assert_enqueued(source, type="kit.job", count=2)) == 2
        assert_not_enqueued(source, type="kit.job", payload_contains={"n": 3})

    def test_a_failed_assertion_shows_what_there_is(self, source: Any) -> None:
        there = job(5)
        self.submit(source, there)
        with pytest.raises(AssertionError) as found:
            assert_enqueued(source, type="kit.job", payload_contains={"n": 6})
        text = str(found.value)
        assert "expected a job with type='kit.job', payload_contains={'n': 6}, found 0" in text
        assert f"{there.id} kit.job queued " in text
        assert '"n":5' in text
        with pytest.raises(AssertionError, match="expected 2 jobs of any kind, found 1"):
            assert_enqueued(source, count=2)
        with pytest.raises(AssertionError, match=str(there.id)):
            assert_not_enqueued(source)

    def test_no_jobs_at_all_are_said_in_words(self, source: Any) -> None:
        assert_not_enqueued(source)
        with pytest.raises(AssertionError, match="There are no jobs"):
            assert_enqueued(source)


class TestDrain:
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(datetime(2026, 3, 1, tzinfo=UTC))

    @pytest.fixture
    def kept(self, clock: ManualClock) -> MemoryStore:
        return MemoryStore(REGISTRY, clock=clock)

    def status(self, kept: MemoryStore, wanted: NewJob) -> Status:
        return Status((kept.get(wanted.id) or {})["status"])

    def test_due_jobs_run_with_all_that_follows_and_others_stay(self, kept: MemoryStore) -> None:
        org = uuid4()
        parent = job(1, org_id=org)
        child = job(2, org_id=org, parents=(ParentEdge(parent.id),))
        later = job(3, run_at=kept.clock() + timedelta(hours=1))
        other = job(4, type=OTHER.name)
        kept.submit([child, parent, later, other])
        runs = drain(kept, [handler(fine)])
        assert [run.job.id for run in runs] == [parent.id, child.id]
        assert [run.result for run in runs] == [Result(n=2), Result(n=3)]
        assert [self.status(kept, j) for j in (parent, child, later, other)] == [
            Status.COMPLETED,
            Status.COMPLETED,
            Status.QUEUED,
            Status.QUEUED,
        ]

    def test_retries_snoozes_and_dates_fall_due_as_the_clock_moves_on(
        self, kept: MemoryStore, clock: ManualClock
    ) -> None:
        def act(ctx: JobContext, payload: Payload) -> Result:
            if ctx.job.attempt == 1:
                raise RetryableError("kit.busy", "Busy.")
            if ctx.job.attempt == 2:
                raise Snooze(600, "not yet")
            return Result(n=ctx.job.retry_count)

        at = clock()
        kept.submit([job(run_at=at + timedelta(seconds=100))])
        runs = drain(kept, [handler(act)], within=3600)
        assert [run.ended for run in runs] == ["retrying", "snoozed", "completed"]
        assert [round((run.job.started_at - at).total_seconds(), 1) for run in runs] == [100, 108, 708]
        assert runs[-1].result == Result(n=1)

    def test_the_clock_stops_at_its_bound(self, kept: MemoryStore, clock: ManualClock) -> None:
        waiting = job(run_at=clock() + timedelta(seconds=100))
        kept.submit([waiting])
        assert drain(kept, [handler(fine)], within=99) == []
        assert len(drain(kept, [handler(fine)], within=timedelta(seconds=100))) == 1

    def test_start_limits_are_waited_for(self, kept: MemoryStore, clock: ManualClock) -> None:
        kept.set_limit(Limit(LimitTarget("kit"), start_limit=1, start_period=60))
        kept.submit([job(n) for n in range(3)])
        at = clock()
        runs = drain(kept, [handler(fine)], within=300)
        assert [round((run.job.started_at - at).total_seconds()) for run in runs] == [0, 60, 120]

    def test_a_key_lets_its_jobs_through_one_after_another(self, kept: MemoryStore) -> None:
        org = uuid4()
        kept.submit([job(n, org_id=org, concurrency_key="k") for n in range(4)])
        assert len(drain(kept, [handler(fine)])) == 4

    def test_progress_and_log_lines_are_kept_as_events(self, kept: MemoryStore) -> None:
        wanted = job()
        kept.submit([wanted])
        drain(kept, [handler(swallowing)])
        kinds = [event["kind"] for event in kept.events(wanted.id)]
        assert kinds == ["accepted", "started", "progress", "progress", "progress", "completed"]

    def test_jobs_that_effects_submit_run_too(self, kept: MemoryStore) -> None:
        def act(ctx: JobContext, payload: Payload) -> Any:
            more = [job(payload.n - 1, org_id=ctx.job.org_id) for _ in range(2)] if payload.n else []
            return Done(Result(), effects=(lambda conn: submit(conn, more, REGISTRY) and None,))

        kept.submit([job(2)])
        assert len(drain(kept, [handler(act)])) == 7
        assert len(assert_enqueued(kept, payload_contains={"n": 0})) == 4

    def test_an_effect_that_fails_makes_the_attempt_fail_and_leaves_nothing(self, kept: MemoryStore) -> None:
        def act(ctx: JobContext, payload: Payload) -> Any:
            def write(conn: Any) -> None:
                submit(conn, [job(9)], REGISTRY)
                raise PermanentError("kit.never", "Never.")

            return Done(Result(), effects=(write,))

        wanted = job()
        kept.submit([wanted])
        [run] = drain(kept, [handler(act)])
        assert (run.ended, (run.error or {})["code"], run.result) == ("failed", "kit.never", None)
        assert_enqueued(kept, count=1)
        assert (kept.get(wanted.id) or {})["error"]["code"] == "kit.never"

    def test_effects_with_tables_of_their_own_need_postgres(self, kept: MemoryStore, pool: SyncPool) -> None:
        def act(ctx: JobContext, payload: Payload) -> Any:
            statement = "insert into organisations (id, name) values (%s, 'effect')"
            return Done(Result(), effects=(lambda conn: conn.execute(statement, (ids.new_uuid(),)),))

        kept.submit([job()])
        with pytest.raises(TestingKitMisuse, match="runs no SQL"):
            drain(kept, [handler(act)])
        kept.submit([job()])
        with pool.connection() as conn:
            assert [run.ended for run in drain(kept, [handler(act)], connection=conn)] == ["completed"]
            row = conn.execute("select count(*) as n from organisations").fetchone()
        assert row == {"n": 1}

    def test_a_handler_that_cancels_its_own_job_has_its_result_dropped(self, kept: MemoryStore) -> None:
        def act(ctx: JobContext, payload: Payload) -> Result:
            kept.cancel([ctx.job.id], member_id=None, actor="member:x", reason=None)
            if payload.n:
                ctx.progress(50, "on and on")
            return Result()

        jobs = [job(0), job(1)]
        kept.submit(jobs)
        assert [run.ended for run in drain(kept, [handler(act)])] == ["cancelled", "cancelled"]
        assert {self.status(kept, j) for j in jobs} == {Status.CANCELLED}

    def test_a_job_that_never_ends_is_noticed(self, kept: MemoryStore) -> None:
        kept.submit([job()])
        with pytest.raises(TestingKitMisuse, match="5 runs"):
            drain(kept, [handler(raising(Snooze(0, "again")))], max_runs=5)

    def test_a_clock_that_cannot_be_moved_is_not(self) -> None:
        with pytest.raises(TestingKitMisuse, match="ManualClock"):
            drain(MemoryStore(REGISTRY), [handler(fine)], within=10)
