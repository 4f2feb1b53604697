"""Lists, counts and the queues' figures: right, and as cheap in a deep table as in an empty one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.scheduler.exporter import QueueFigures
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT
from shared.jobs import (
    JobStats,
    NewBatch,
    Outcome,
    Priority,
    Status,
    figures,
    insert_batch,
    job_stats,
    limits,
    queue_figures,
    sample,
)
from shared.jobs.limits import LimitTarget
from shared.jobs.queries import SCAN_ROWS, JobFilter, Viewer, list_jobs, listed
from tests.shared.jobs.insight import Desk, desk, fill, nodes

__all__ = ["desk"]
DEEP = 50_000


def pages(desk: Desk, viewer: Viewer, wanted: JobFilter, limit: int = 50, most: int = 100) -> list[list[UUID]]:
    found, before = [], None
    for _ in range(most):
        query = list_jobs(viewer, wanted, before=before, limit=limit)
        page = listed(desk.sql(query.sql, **query.parameters), limit)
        assert len(page.rows) <= limit
        found.append([row["id"] for row in page.rows])
        if (before := page.before) is None:
            return found
    raise AssertionError("pages without an end")


def everything(found: list[list[UUID]]) -> list[UUID]:
    return [id for page in found for id in page]


def stats(desk: Desk, viewer: Viewer, types: list[str] | None = None) -> JobStats:
    with desk.pool.connection() as conn:
        return job_stats(conn, viewer, types)


def counted(desk: Desk) -> bool:
    with desk.pool.connection() as conn:
        return sample(conn)


class TestLists:
    @pytest.fixture
    def school(self, desk: Desk) -> Desk:
        """300 jobs of two members in every status, and as many of another school."""
        statuses = "(array['waiting','queued','processing','completed','failed','cancelled'])[1 + g %% 6]"
        for who in (desk, desk.other_school()):
            for _ in range(2):
                fill(
                    desk.pool, who.org_id, 150, created_by=who.member(), status=statuses, priority="g %% 3",
                    type=f"case when g %% 10 = 0 then '{GRADING_QUIZ.name}' else '{OCR_DOCUMENT.name}' end",
                )  # fmt: skip
        return desk

    @pytest.mark.parametrize("role", ["member", "admin", "super_admin"])
    @pytest.mark.parametrize("limit", [1, 7, 200])
    def test_show_what_the_viewer_may_see_newest_first_once_each(self, school: Desk, role: str, limit: int) -> None:
        me = school.sql("select created_by from jobs where org_id = %(o)s limit 1", o=school.org_id)[0]["created_by"]
        viewer = Viewer(school.org_id, me, role)
        after = datetime.now(UTC) - timedelta(milliseconds=120)
        for wanted, condition in (
            (JobFilter(), "true"),
            (JobFilter(statuses=[Status.FAILED]), "status = 'failed'"),
            (JobFilter(statuses=[Status.FAILED, Status.QUEUED]), "status in ('failed', 'queued')"),
            (JobFilter(types=[GRADING_QUIZ.name]), f"type = '{GRADING_QUIZ.name}'"),
            (JobFilter(priority=Priority.LOW, statuses=[Status.WAITING]), "priority = 2 and status = 'waiting'"),
            (JobFilter(created_after=after), "created_at >= %(after)s"),
            (JobFilter(created_before=after, types=[OCR_DOCUMENT.name]),
             f"created_at < %(after)s and type = '{OCR_DOCUMENT.name}'"),
        ):  # fmt: skip
            expected = school.sql(
                f"select id from jobs where {viewer.condition()} and {condition} order by id desc",
                after=after, **viewer.parameters,
            )  # fmt: skip
            assert everything(pages(school, viewer, wanted, limit, most=1000)) == [r["id"] for r in expected], condition

    def test_a_batchs_jobs_are_listed_to_those_who_may_see_them(self, desk: Desk) -> None:
        batch, me = uuid4(), desk.member()
        with desk.pool.connection() as conn:
            insert_batch(conn, NewBatch(batch, desk.org_id, me, "upload", total=3))
        mine = [desk.add(batch_id=batch, created_by=me) for _ in range(3)]
        desk.add(created_by=me)
        wanted = JobFilter(batch_id=batch)
        assert everything(pages(desk, Viewer(desk.org_id, me, "member"), wanted, 2)) == mine[::-1]
        assert everything(pages(desk, Viewer(desk.org_id, uuid4(), "member"), wanted)) == []
        assert everything(pages(desk, Viewer(uuid4(), me, "admin"), wanted)) == []

    def test_few_among_many_are_found_page_by_page(self, desk: Desk) -> None:
        fill(desk.pool, desk.org_id, DEEP, type=f"case when g <= 3 then '{GRADING_QUIZ.name}' else 'x' end")
        found = pages(desk, Viewer(desk.org_id, uuid4(), "admin"), JobFilter(types=[GRADING_QUIZ.name]))
        assert len(everything(found)) == 3
        assert found[0] == [], "the first page ends early, and says where to go on"
        assert len(found) <= 6 * DEEP // SCAN_ROWS + 1

    @pytest.mark.parametrize("known", ["nothing known", "analysed", "known wrongly"])
    @pytest.mark.parametrize("role", ["member", "admin", "super_admin"])
    def test_a_page_never_costs_more_than_its_bound(self, desk: Desk, role: str, known: str) -> None:
        desk.sql("alter table jobs set (autovacuum_enabled = off)")
        me = desk.member()
        if known == "known wrongly":
            for _ in range(3):
                fill(desk.pool, desk.other_school().org_id, 100)
            desk.sql("analyze jobs")
        fill(desk.pool, desk.org_id, DEEP, created_by=me)
        for _ in range(5):
            fill(desk.pool, desk.other_school().org_id, 100, status="'failed'")
        if known == "analysed":
            desk.sql("analyze jobs")
        viewer = Viewer(desk.org_id, me, role)
        for wanted in (
            JobFilter(),
            JobFilter(statuses=[Status.QUEUED]),
            JobFilter(statuses=[Status.FAILED]),
            JobFilter(types=["none"]),
            JobFilter(types=["none"], statuses=[Status.QUEUED]),
            JobFilter(created_before=datetime.now(UTC) - timedelta(days=1)),
        ):
            query = list_jobs(viewer, wanted, before=None, limit=50)
            [plan] = desk.sql(f"explain (analyze, format json) {query.sql}", **query.parameters)
            seen = nodes(plan["QUERY PLAN"][0]["Plan"])
            on_jobs = [n for n in seen if n.get("Relation Name") == "jobs" or "Index Name" in n]
            rows = sum((n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"] for n in on_jobs)
            assert rows <= 2 * SCAN_ROWS + 1000, wanted


class TestStats:
    def test_count_the_callers_own(self, desk: Desk) -> None:
        me = desk.member()
        desk.add(created_by=me)
        grading = desk.grading(created_by=me)
        desk.accept(grading)
        desk.add()
        desk.other_school().add()
        desk.claim()
        mine = stats(desk, Viewer(desk.org_id, me, "member"))
        assert (mine.total, mine.exact) == (2, True)
        assert mine.by_status[Status.QUEUED] + mine.by_status[Status.PROCESSING] == 2
        assert mine.by_type[GRADING_QUIZ.name][Status.QUEUED] == 1
        assert stats(desk, Viewer(desk.org_id, me, "admin")).total == 3
        assert stats(desk, Viewer(desk.org_id, me, "admin"), [GRADING_QUIZ.name]).total == 1

    def test_a_super_admins_are_everybodys_as_last_counted(self, desk: Desk) -> None:
        viewer = Viewer(desk.org_id, uuid4(), "super_admin")
        assert stats(desk, viewer) == JobStats(dict.fromkeys(Status, 0), {}, exact=False, as_of=None)
        desk.add()
        desk.other_school().add()
        assert counted(desk)
        found = stats(desk, viewer)
        assert (found.total, found.by_status[Status.QUEUED], found.exact) == (2, 2, False)
        assert found.as_of is not None

    def test_too_many_to_count_are_said_to_be(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        me = desk.member()
        fill(desk.pool, desk.org_id, figures.COUNTED_ROWS + 500, created_by=me)
        desk.add()
        admin, member = Viewer(desk.org_id, me, "admin"), Viewer(desk.org_id, me, "member")
        bound = stats(desk, admin)
        assert (bound.by_status[Status.QUEUED], bound.exact, bound.as_of) == (figures.COUNTED_ROWS, False, None)
        assert counted(desk)
        known = stats(desk, admin)
        assert known.by_status[Status.QUEUED] == figures.COUNTED_ROWS + 501
        assert (known.exact, known.as_of is None) == (False, False)
        assert stats(desk, member).by_status[Status.QUEUED] == figures.COUNTED_ROWS, "members are not counted apart"


class TestQueues:
    def figures(self, desk: Desk) -> Any:
        with desk.pool.connection() as conn:
            found = {f.queue: f for f in queue_figures(conn, ["ocr", "grading"])}
        return found["ocr"]

    def test_show_what_is_there(self, desk: Desk) -> None:
        assert self.figures(desk).as_of is None, "not counted yet"
        desk.worker()
        done, failed, *_ = [desk.add() for _ in range(5)]
        desk.add(run_at=datetime.now(UTC) + timedelta(hours=1))
        desk.sql("update jobs set hold = 1 where id = %(id)s", id=desk.add(concurrency_key="k"))
        desk.sql("update jobs set run_at = run_at - interval '60 seconds' where run_at < now()")
        claimed = {c.id: c for c in desk.claim(3)}
        desk.settle(Outcome.completed(claimed[done], {}), Outcome.failed(claimed[failed], {"code": "a.b"}))
        assert counted(desk)
        found = self.figures(desk)
        assert (found.due, found.later, found.held, found.processing, found.failed) == (2, 1, 1, 1, 1)
        assert found.oldest_seconds == pytest.approx(60, abs=5)
        assert found.per_minute == 0.4, "two in five minutes"
        assert found.wait_p50 == pytest.approx(60, abs=5)
        assert 0 <= found.run_p50 <= found.run_p95 < 5
        assert (found.workers, found.slots, found.paused_at) == (1, 3, None)

    def test_pauses_and_workers_are_those_of_now(self, desk: Desk) -> None:
        counted(desk)
        desk.worker(job_types=(OCR_DOCUMENT.name,))
        with desk.pool.connection() as conn:
            limits.pause(conn, LimitTarget("ocr"), actor="system", reason="Moving house")
        found = self.figures(desk)
        assert (found.pause_reason, found.workers, found.job_types) == ("Moving house", 1, (OCR_DOCUMENT.name,))
        desk.sql("update workers set seen_at = seen_at - interval '1 minute'")
        assert self.figures(desk).workers == 0

    def test_a_costly_count_is_not_repeated_at_once(self, desk: Desk) -> None:
        assert counted(desk)
        assert counted(desk), "a cheap one may be"
        desk.sql("update queue_figures set seconds = 2")
        assert not counted(desk)
        desk.sql("update queue_figures set as_of = as_of - interval '41 seconds'")
        assert counted(desk), "after twenty times its cost"

    def test_one_counts_at_a_time_and_the_others_read(self, desk: Desk) -> None:
        desk.add()
        with desk.pool.connection() as other, other.transaction():
            other.execute(figures._LOCK)
            assert not counted(desk)
            QueueFigures(desk.pool).collect()
        assert counted(desk)

    def test_only_what_changed_is_written(self, desk: Desk) -> None:
        desk.add()
        gone = desk.other_school()
        gone.add()
        counted(desk)
        before = desk.sql("select ctid::text as at, org_id from job_figures where org_id = %(o)s", o=desk.org_id)
        desk.sql("delete from jobs where org_id = %(o)s", o=gone.org_id)
        counted(desk)
        assert desk.sql("select ctid::text as at, org_id from job_figures") == before
