"""Why a job is where it is: the sentence names what really blocks it, and nothing of another school's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.contracts import OCR_DOCUMENT
from shared.db import open_async_pool
from shared.ids import IdKind, encode
from shared.jobs import (
    NewBatch,
    Outcome,
    ParentEdge,
    Priority,
    Why,
    WhyCode,
    _why_queries,
    insert_batch,
    limits,
    store,
    why,
    why_async,
)
from shared.jobs.limits import EVERY, Limit, LimitTarget
from shared.jobs.queries import Viewer
from tests.shared.jobs.insight import WORKER, Desk, desk, fill, nodes

__all__ = ["desk"]
ERROR = {"code": "provider.busy", "message": "The reading service is busy."}


def ask(desk: Desk, id: UUID, viewer: Viewer | None = None) -> Why:
    with desk.pool.connection() as conn:
        found = why(conn, id, viewer)
    assert found is not None
    assert found.sentence.endswith((".", "!", "?")), found.sentence
    return found


def public(id: UUID) -> str:
    return encode(IdKind.JOB, id)


def pause(desk: Desk, target: LimitTarget, actor: str, reason: str | None = None) -> None:
    with desk.pool.connection() as conn:
        limits.pause(conn, target, actor=actor, reason=reason)


def limit(desk: Desk, target: LimitTarget, **numbers: Any) -> None:
    with desk.pool.connection() as conn:
        limits.set_limit(conn, Limit(target, **numbers))


class TestNotYetDue:
    def test_a_job_for_later_says_when(self, desk: Desk) -> None:
        at = datetime.now(UTC) + timedelta(minutes=30)
        found = ask(desk, desk.add(run_at=at))
        assert (found.code, found.details["run_at"]) == (WhyCode.DUE_LATER, at)
        assert "in 30 minutes" in found.sentence

    def test_a_retry_says_what_failed_and_when_it_is_tried_again(self, desk: Desk) -> None:
        id = desk.add()
        desk.settle(Outcome.retry(desk.claim()[0], ERROR, 60))
        found = ask(desk, id)
        assert found.code == WhyCode.RETRYING
        assert found.sentence == (
            "Try 1 failed: The reading service is busy. It is tried again in 60 seconds (retry 1 of 2)."
        )
        assert found.details["error"]["code"] == "provider.busy"

    def test_a_snoozed_job_says_why(self, desk: Desk) -> None:
        id = desk.add()
        desk.settle(Outcome.snoozed(desk.claim()[0], "The page image is not there yet", 300))
        found = ask(desk, id)
        assert found.code == WhyCode.SNOOZED
        assert "The page image is not there yet. It goes on in 5 minutes." in found.sentence


class TestParents:
    def test_names_the_parents_and_what_holds_them_up(self, desk: Desk) -> None:
        top = desk.new(run_at=datetime.now(UTC) + timedelta(hours=1))
        middle = desk.new(parents=(ParentEdge(top.id),))
        last = desk.grading(parents=(ParentEdge(middle.id),))
        desk.accept(top, middle, last)
        found = ask(desk, last.id)
        assert found.code == WhyCode.PARENTS
        assert [p["id"] for p in found.details["parents"]] == [public(middle.id)]
        assert found.details["parents"][0]["status"] == "waiting"
        assert found.details["held_up_by"]["id"] == public(top.id), "not the one between, which waits itself"
        assert found.details["held_up_by"]["why"] == WhyCode.DUE_LATER
        assert "It waits for 1 other job to finish first: Reading (waits itself)." in found.sentence
        assert "it was asked for later: it is due in 60 minutes" in found.sentence

    def test_parents_that_have_ended_are_not_named(self, desk: Desk) -> None:
        done, open_ = desk.new(), desk.new()
        child = desk.grading(parents=(ParentEdge(done.id), ParentEdge(open_.id)))
        desk.accept(done, open_, child)
        [claimed] = desk.claim()
        desk.settle(Outcome.completed(claimed, {}))
        assert ask(desk, child.id).details["pending"] == 1

    def test_a_colleagues_parent_is_counted_and_not_named(self, desk: Desk) -> None:
        me, colleague = desk.member(), desk.member()
        parent = desk.new(created_by=colleague)
        child = desk.grading(created_by=me, parents=(ParentEdge(parent.id),))
        desk.accept(parent, child)
        found = ask(desk, child.id, Viewer(desk.org_id, me, "member"))
        assert (found.details["pending"], found.details["parents"]) == (1, [])
        assert public(parent.id) not in str(found)
        admin = ask(desk, child.id, Viewer(desk.org_id, me, "admin"))
        assert admin.details["held_up_by"]["id"] == public(parent.id)

    def test_a_completion_job_waits_for_its_batch(self, desk: Desk) -> None:
        batch = uuid4()
        with desk.pool.connection() as conn:
            insert_batch(conn, NewBatch(batch, desk.org_id, None, "upload", total=2))
        desk.accept(desk.new(batch_id=batch), desk.new(batch_id=batch))
        last = desk.grading(after_batch=batch)
        desk.accept(last)
        desk.settle(Outcome.completed(desk.claim()[0], {}))
        found = ask(desk, last.id)
        assert (found.code, found.details["ended"], found.details["total"]) == (WhyCode.BATCH, 1, 2)


class TestPausesAndLimits:
    @pytest.mark.parametrize("scope", ["queue", "organisation", "key"])
    def test_a_pause_says_by_whom_since_when_and_why(self, desk: Desk, scope: str) -> None:
        id = desk.add(concurrency_key="scanner")
        target = {
            "queue": LimitTarget("ocr"),
            "organisation": LimitTarget("ocr", desk.org_id),
            "key": LimitTarget("ocr", desk.org_id, "scanner"),
        }[scope]
        admin = desk.member("admin")
        pause(desk, target, f"member:{admin}", "The scanner is being mended")
        desk.worker()
        found = ask(desk, id, Viewer(desk.org_id, uuid4(), "admin"))
        assert found.code == f"paused.{scope}"
        assert "by an administrator of your organisation" in found.sentence
        assert found.sentence.endswith("ago: The scanner is being mended.")
        assert found.details["paused_by"] == encode(IdKind.MEMBER, admin)
        assert found.details["since"] is not None

    def test_another_schools_person_is_not_named(self, desk: Desk) -> None:
        stranger = desk.other_school().member("super_admin")
        pause(desk, LimitTarget("ocr"), f"member:{stranger}")
        found = ask(desk, desk.add(), Viewer(desk.org_id, uuid4(), "admin"))
        assert "by the operators" in found.sentence
        assert found.details["paused_by"] is None

    def test_anothers_pause_is_not_ours(self, desk: Desk) -> None:
        other = desk.other_school()
        pause(desk, LimitTarget("ocr", other.org_id), "system")
        desk.worker()
        assert ask(desk, desk.add()).code == WhyCode.NEXT

    @pytest.mark.parametrize("scope", ["queue", "organisation", "each organisation"])
    def test_a_reached_limit_says_which(self, desk: Desk, scope: str) -> None:
        desk.worker()
        desk.add()
        desk.claim()
        org = {"queue": None, "organisation": desk.org_id, "each organisation": EVERY}[scope]
        limit(desk, LimitTarget("ocr", org), max_running=1)
        found = ask(desk, desk.add())
        assert found.code == f"limit.{scope.removeprefix('each ')}"
        assert (found.details["running"], found.details["max_running"]) == (1, 1)
        assert "may run 1 job at once, and 1 is running" in found.sentence

    def test_an_organisations_own_limit_goes_before_that_of_each(self, desk: Desk) -> None:
        desk.worker()
        desk.add()
        desk.claim()
        limit(desk, LimitTarget("ocr", EVERY), max_running=1)
        limit(desk, LimitTarget("ocr", desk.org_id), max_running=5)
        assert ask(desk, desk.add()).code == WhyCode.NEXT

    def test_a_used_up_start_rate_says_when_the_next_start_is_allowed(self, desk: Desk) -> None:
        desk.worker()
        limit(desk, LimitTarget("ocr"), start_limit=2, start_period=100)
        waiting = [desk.add() for _ in range(3)][2]
        assert len(desk.claim(5)) == 2
        found = ask(desk, waiting)
        assert found.code == WhyCode.RATE_QUEUE
        left = (found.details["next_start_at"] - datetime.now(UTC)).total_seconds()
        assert 40 < left <= 51, "one start in 50 s"
        assert "may start 2 jobs in 100 seconds" in found.sentence

    def test_a_taken_key_names_the_jobs_that_hold_it(self, desk: Desk) -> None:
        desk.worker()
        first, second = desk.add(concurrency_key="scanner"), desk.add(concurrency_key="scanner")
        assert [c.id for c in desk.claim()] == [first]
        found = ask(desk, second)  # the claim has set it apart
        assert (found.code, found.details["jobs"][0]["id"]) == (WhyCode.KEY_TAKEN, public(first))
        assert "Work for “scanner” may run 1 job at once, and 1 is running (Reading)." in found.sentence

    def test_what_blocks_first_is_said_first(self, desk: Desk) -> None:
        id = desk.add(run_at=datetime.now(UTC) + timedelta(seconds=0))
        pause(desk, LimitTarget("ocr"), "system")
        assert ask(desk, id).code == WhyCode.PAUSED_QUEUE, "before that there is no worker"
        with desk.pool.connection() as conn:
            limits.resume(conn, LimitTarget("ocr"))
        assert ask(desk, id).code == WhyCode.NO_WORKER
        limit(desk, LimitTarget("ocr"), max_running=0)
        desk.worker()
        assert ask(desk, id).code == WhyCode.LIMIT_QUEUE


class TestWorkers:
    def test_no_worker_says_since_when(self, desk: Desk) -> None:
        id = desk.add()
        assert ask(desk, id).sentence.startswith("No worker for this kind of job has been seen yet.")
        desk.worker()
        desk.sql("update workers set seen_at = seen_at - interval '90 seconds'")
        found = ask(desk, id)
        assert found.code == WhyCode.NO_WORKER
        assert "has been heard of for 9" in found.sentence
        assert 90 <= found.details["seen_seconds_ago"] < 100

    def test_a_worker_that_does_not_know_the_type_is_no_help(self, desk: Desk) -> None:
        id = desk.add()
        desk.worker(job_types=("ocr.new",))
        found = ask(desk, id)
        assert found.code == WhyCode.NO_WORKER_FOR_TYPE
        desk.worker(uuid4(), job_types=(OCR_DOCUMENT.name,))
        assert ask(desk, id).code == WhyCode.NEXT

    def test_a_job_that_runs_alone_next_says_so(self, desk: Desk) -> None:
        id = desk.add()
        desk.worker()
        desk.sql("update jobs set hold = 2, crash_count = 2 where id = %(id)s", id=id)
        assert ask(desk, id).code == WhyCode.ALONE


class TestAhead:
    def test_counts_as_the_claim_picks(self, desk: Desk) -> None:
        desk.worker()
        others = [desk.other_school() for _ in range(3)]
        age = {0: 0, 1: 700, 2: 1300}
        jobs = []
        for n, (who, priority) in enumerate((w, p) for w in [desk, *others] for p in Priority for _ in range(4)):
            jobs.append(id := who.add(priority=priority))
            seconds = age[n % 3] + n
            desk.sql(
                "update jobs set run_at = run_at - make_interval(secs => %(s)s) where id = %(id)s", s=seconds, id=id
            )
        others[0].claim(2)
        left = [r["id"] for r in desk.sql("select id from jobs where status = 'queued'")]
        told = {id: ask(desk, id).details.get("ahead", 0) for id in left}
        rows = desk.sql(_ORDER, age=store.AGE_SECONDS)
        assert [told[r["id"]] for r in rows] == list(range(len(left)))
        assert told[desk.claim()[0].id] == 0

    def test_a_thousand_is_enough(self, desk: Desk) -> None:
        desk.worker()
        fill(desk.pool, desk.org_id, 1200)
        newest = desk.sql("select id from jobs order by id desc limit 1")[0]["id"]
        found = ask(desk, newest)
        assert (found.code, found.details["ahead"], found.details["more"]) == (WhyCode.AHEAD, 1000, True)
        assert found.sentence.startswith("More than 1,000 jobs are ahead of it; 1 worker with 3 places in all")

    def test_the_next_is_told_so(self, desk: Desk) -> None:
        desk.worker()
        first, second = desk.add(), desk.add()
        assert ask(desk, first).code == WhyCode.NEXT
        found = ask(desk, second)
        assert (found.code, found.details["ahead"]) == (WhyCode.AHEAD, 1)
        assert found.sentence == "1 job is ahead of it; 1 worker with 3 places in all, 0 of them taken."

    def test_jobs_of_a_paused_school_and_held_ones_are_not_ahead(self, desk: Desk) -> None:
        desk.worker()
        other = desk.other_school()
        other.add()
        pause(desk, LimitTarget("ocr", other.org_id), "system")
        desk.sql("update jobs set hold = 1 where id = %(id)s", id=desk.add(concurrency_key="x"))
        assert ask(desk, desk.add()).code == WhyCode.NEXT

    @pytest.mark.parametrize("known", ["nothing known", "analysed", "known wrongly"])
    def test_a_deep_backlog_is_never_walked(self, desk: Desk, known: str) -> None:
        if known == "known wrongly":
            desk.sql("alter table jobs set (autovacuum_enabled = off)")
            fill(desk.pool, desk.other_school().org_id, 100)
            desk.sql("analyze jobs")
        fill(desk.pool, desk.org_id, 50_000, priority="g %% 3")
        for _ in range(5):
            fill(desk.pool, desk.other_school().org_id, 500)
        if known == "analysed":
            desk.sql("analyze jobs")
        for row in desk.sql(
            "select *, now() as now from jobs where org_id = %(o)s order by id limit 40000", o=desk.org_id
        )[::13_000]:
            query = _why_queries.ahead(row, level=row["priority"], now=row["now"], age_seconds=store.AGE_SECONDS)
            [plan] = desk.sql(f"explain (analyze, format json) {query.sql}", **query.parameters)
            seen = nodes(plan["QUERY PLAN"][0]["Plan"])
            assert {n["Node Type"] for n in seen} & {"Seq Scan", "Bitmap Heap Scan"} == set()
            assert max(n["Actual Rows"] * n["Actual Loops"] for n in seen) < 20_000


# The claim's rule, written down without an index in mind.
_ORDER = """
with busy as (
  select org_id, count(*) as jobs from jobs where status = 'processing' group by org_id
), level as (
  select id, org_id, run_at,
         greatest(0, priority - floor(extract(epoch from now() - run_at) / %(age)s))::int as level
    from jobs where status = 'queued'
), turn as (
  select l.*, coalesce(b.jobs, 0) + row_number() over (partition by l.org_id order by level, run_at, id) as turn
    from level l left join busy b using (org_id)
)
select id from turn order by level, turn, run_at, id
"""


class TestBegunAndEnded:
    def test_a_running_job_says_who_and_how_far(self, desk: Desk) -> None:
        id = desk.add()
        desk.worker()
        [claimed] = desk.claim()
        with desk.pool.connection() as conn:
            store.progress(conn, id, claimed.attempt, WORKER, 40, "Reading page 2 of 5")
        found = ask(desk, id)
        assert (found.code, found.details["healthy"], found.details["percent"]) == (WhyCode.PROCESSING, True, 40)
        assert found.details["worker_id"] == str(WORKER)
        assert found.sentence.endswith("and is at 40 %: Reading page 2 of 5. Its worker is well.")

    def test_a_lost_worker_is_told_with_when_the_job_is_given_back(self, desk: Desk) -> None:
        id = desk.add()
        desk.worker()
        desk.claim()
        desk.sql("update workers set seen_at = seen_at - interval '20 seconds'")
        desk.sql("update jobs set lease_until = now() + interval '4 seconds'")
        found = ask(desk, id)
        assert (found.code, found.details["healthy"]) == (WhyCode.WORKER_LOST, False)
        assert "has not been heard of for 2" in found.sentence
        assert 8 <= found.details["given_back_within_seconds"] <= 9

    def test_an_ended_job_says_how(self, desk: Desk) -> None:
        done, failed = desk.add(), desk.add()
        first, second = desk.claim(2)
        error = {"code": "job.internal_error", "message": "It broke.", "details": {"traceback": ["a.py:1 f"]}}
        desk.settle(Outcome.completed(first, {}), Outcome.failed(second, error))
        assert ask(desk, done).code == WhyCode.COMPLETED
        found = ask(desk, failed)
        assert found.code == WhyCode.FAILED
        assert found.sentence.startswith("It failed after 1 try: It broke. Start it once more")
        assert "traceback" not in str(found.details)

    def test_a_cancelled_job_says_by_whom(self, desk: Desk) -> None:
        me = desk.member()
        id = desk.add(created_by=me)
        with desk.pool.connection() as conn, conn.transaction():
            store.cancel(conn, [id], member_id=me, actor=f"member:{me}", reason="wrong file")
        mine = ask(desk, id, Viewer(desk.org_id, me, "member"))
        assert (mine.code, mine.details["reason"]) == (WhyCode.CANCELLED, "wrong file")
        assert "cancelled by you" in mine.sentence
        assert "by a member of your organisation" in ask(desk, id, Viewer(desk.org_id, uuid4(), "admin")).sentence


def test_what_the_viewer_may_not_see_does_not_exist(desk: Desk) -> None:
    id = desk.add(created_by=desk.member())
    with desk.pool.connection() as conn:
        assert why(conn, id, Viewer(uuid4(), uuid4(), "admin")) is None
        assert why(conn, id, Viewer(desk.org_id, uuid4(), "member")) is None
        assert why(conn, uuid4()) is None


def test_an_event_loop_is_told_the_same(desk: Desk, database_url: str) -> None:
    id = desk.add()

    async def told() -> Why | None:
        pool = await open_async_pool(database_url, size=1, application_name="test")
        try:
            async with pool.connection() as conn:
                return await why_async(conn, id)
        finally:
            await pool.close()

    assert asyncio.run(told()) == ask(desk, id)
