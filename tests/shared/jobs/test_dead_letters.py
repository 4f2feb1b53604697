"""Dead letters: what there is, running it again by the hundred, and throwing it away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import ids
from shared.contracts import GRADING_QUIZ, NOTIFY_WEBHOOK, OCR_DOCUMENT
from shared.db import SyncPool, open_async_pool
from shared.jobs import (
    DeadLetterFilter,
    InvalidSubmit,
    NewBatch,
    NewJob,
    Outcome,
    ParentEdge,
    RedriveReport,
    Status,
    count_dead_letters,
    count_dead_letters_async,
    dead_letters,
    insert_batch,
    list_dead_letters,
    purge_dead_letters,
    purge_dead_letters_async,
    redrive_matching,
    redrive_matching_async,
    store,
    submit,
)
from shared.jobs.dead_letters import merge_patch
from shared.jobs.queries import Viewer
from shared.jobs.views import job_json

WORKER = uuid4()
ALL = DeadLetterFilter()
Make = Callable[..., NewJob]
Dead = Callable[..., list[NewJob]]


@pytest.fixture
def admin(org_id: UUID) -> Viewer:
    return Viewer(org_id, uuid4(), "admin")


@pytest.fixture
def everyone(org_id: UUID) -> Viewer:
    return Viewer(org_id, uuid4(), "super_admin")


@pytest.fixture
def make(org_id: UUID) -> Make:
    def new(**fields: Any) -> NewJob:
        fields.setdefault("type", OCR_DOCUMENT.name)
        if fields["type"] == OCR_DOCUMENT.name:
            fields.setdefault("payload", {"document_id": str(uuid4())})
        elif fields["type"] == GRADING_QUIZ.name:
            fields.setdefault(
                "payload", {"grading_id": str(uuid4()), "standard_id": str(uuid4()), "standard_version": 1}
            )
        return NewJob(**{"id": ids.new_uuid(), "org_id": org_id, **fields})

    return new


@pytest.fixture
def dead(pool: SyncPool, make: Make) -> Dead:
    """So many failed jobs."""

    def fail(n: int = 1, *, code: str = "document.encrypted", **fields: Any) -> list[NewJob]:
        jobs = [make(**fields) for _ in range(n)]
        queue = jobs[0].type.partition(".")[0]
        with pool.connection() as conn, conn.transaction():
            submit(conn, jobs)
        with pool.connection() as conn, conn.transaction():
            claimed = store.claim(conn, queue=queue, worker_id=WORKER, lease_seconds=30, limit=n)
            assert len(claimed) == n
            store.settle(conn, WORKER, [Outcome.failed(c, {"code": code, "message": "No."}) for c in claimed])
        return jobs

    return fail


def listed(pool: SyncPool, viewer: Viewer, wanted: DeadLetterFilter = ALL, **options: Any) -> list[UUID]:
    query = list_dead_letters(viewer, wanted, **{"before": None, "limit": 100, **options})
    with pool.connection() as conn:
        return [job_json(r) and r["id"] for r in conn.execute(query.sql, query.parameters).fetchall()]


def redriven(pool: SyncPool, viewer: Viewer, wanted: DeadLetterFilter = ALL, **options: Any) -> RedriveReport:
    with pool.connection() as conn:
        return redrive_matching(conn, viewer, wanted, actor="member:x", **options)


def rows(pool: SyncPool, order: str = "id") -> list[dict[str, Any]]:
    with pool.connection() as conn:
        return conn.execute(f"select * from jobs order by {order}").fetchall()


class TestList:
    def test_it_holds_the_failed_jobs_newest_first_page_by_page(
        self, pool: SyncPool, make: Make, dead: Dead, admin: Viewer
    ) -> None:
        jobs = [j.id for j in dead(5)]
        with pool.connection() as conn, conn.transaction():
            submit(conn, [make()])
        assert listed(pool, admin) == jobs[::-1]
        assert listed(pool, admin, limit=2) == jobs[:2:-1]
        assert listed(pool, admin, before=jobs[3], limit=2) == [jobs[2], jobs[1]]

    def test_each_sees_what_is_theirs(self, pool: SyncPool, dead: Dead, org_id: UUID, everyone: Viewer) -> None:
        member = uuid4()
        [own] = dead(created_by=member)
        [colleagues] = dead(created_by=uuid4())
        [foreign] = dead(org_id=uuid4(), created_by=member)
        assert listed(pool, Viewer(org_id, member, "member")) == [own.id]
        assert listed(pool, Viewer(org_id, member, "admin")) == [colleagues.id, own.id]
        assert listed(pool, everyone) == [foreign.id, colleagues.id, own.id]
        assert listed(pool, everyone, DeadLetterFilter(org_id=foreign.org_id)) == [foreign.id]
        assert listed(pool, Viewer(org_id, member, "admin"), DeadLetterFilter(org_id=foreign.org_id)) == []
        assert listed(pool, Viewer(org_id, member, "admin"), DeadLetterFilter(ids=[foreign.id])) == []

    def test_every_filter_narrows(self, pool: SyncPool, dead: Dead, admin: Viewer, org_id: UUID) -> None:
        member, batch_id = uuid4(), uuid4()
        with pool.connection() as conn:
            insert_batch(conn, NewBatch(batch_id, org_id, None, "upload", 1))
        [a] = dead(code="x.one", created_by=member)
        [b] = dead(type=GRADING_QUIZ.name, code="x.two")
        [c] = dead(batch_id=batch_id)
        now = datetime.now(UTC)
        for wanted, found in (
            (DeadLetterFilter(ids=[a.id, b.id]), [b.id, a.id]),
            (DeadLetterFilter(types=[GRADING_QUIZ.name]), [b.id]),
            (DeadLetterFilter(queues=["ocr"]), [c.id, a.id]),
            (DeadLetterFilter(error_codes=["x.one", "x.two"]), [b.id, a.id]),
            (DeadLetterFilter(member_id=member), [a.id]),
            (DeadLetterFilter(batch_id=batch_id), [c.id]),
            (DeadLetterFilter(failed_after=now - timedelta(hours=1)), [c.id, b.id, a.id]),
            (DeadLetterFilter(failed_before=now - timedelta(hours=1)), []),
            (DeadLetterFilter(types=["' or true --"]), []),
        ):
            assert listed(pool, admin, wanted) == found, wanted


class TestCount:
    def test_the_dry_run_counts_by_type_and_error_and_changes_nothing(
        self, pool: SyncPool, dead: Dead, admin: Viewer, everyone: Viewer
    ) -> None:
        dead(3, code="x.one")
        dead(2, code="x.two", type=GRADING_QUIZ.name)
        dead(1, org_id=uuid4())
        before = rows(pool)
        with pool.connection() as conn:
            count = count_dead_letters(conn, admin, ALL)
            assert (count.total, count.by_type) == (5, {"ocr.document": 3, "grading.quiz": 2})
            assert count.by_error == {"x.one": 3, "x.two": 2}
            assert count_dead_letters(conn, everyone, ALL).total == 6
        assert rows(pool) == before

    def test_it_says_what_a_patch_would_not_fit_without_a_value(
        self, pool: SyncPool, dead: Dead, admin: Viewer
    ) -> None:
        dead(2)
        grading = dead(30, type=GRADING_QUIZ.name)
        with pool.connection() as conn:
            count = count_dead_letters(conn, admin, ALL, payload_patch={"provider": "local"})
        assert (count.total, count.refused, len(count.reasons)) == (32, 30, 20)
        first = count.reasons[0]
        assert (first.id, first.code, first.field) == (grading[0].id, "job.invalid_payload", "payload.provider")


class TestRedrive:
    def test_all_that_match_run_again_and_nobody_elses(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        jobs = dead(5)
        [foreign] = dead(org_id=uuid4())
        report = redriven(pool, admin)
        assert (report.redriven, report.refused, report.skipped, report.more) == (5, 0, {}, False)
        assert {w.job_id for w in report.moved.wakes} == {j.id for j in jobs}
        assert {r["id"] for r in rows(pool) if r["status"] == Status.FAILED} == {foreign.id}

    def test_the_rate_is_kept_by_the_jobs_own_times_over_chunks(
        self, pool: SyncPool, dead: Dead, admin: Viewer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dead_letters, "CHUNK", 4)
        dead(10)
        report = redriven(pool, admin, rate=0.5)
        times = [r["run_at"] for r in rows(pool)]
        gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
        assert all(2 <= gap < 3 for gap in gaps), "one every two seconds, in the order of their ids"
        assert len(report.moved.wakes) == 1, "the first is due now"

    def test_jobs_that_are_skipped_leave_no_hole_in_the_rate(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        dead(3, type=GRADING_QUIZ.name)
        dead(2)
        report = redriven(pool, admin, rate=1, payload_patch={"provider": "local"})
        assert (report.redriven, report.refused) == (2, 3)
        first, second = (r["run_at"] for r in rows(pool) if r["status"] == Status.QUEUED)
        assert (second - first).total_seconds() == pytest.approx(1)

    def test_a_limit_takes_the_oldest_and_says_that_there_is_more(
        self, pool: SyncPool, dead: Dead, admin: Viewer
    ) -> None:
        jobs = dead(5)
        assert redriven(pool, admin, limit=2).more
        assert [r["id"] for r in rows(pool) if r["status"] == Status.QUEUED] == [j.id for j in jobs[:2]]
        assert not redriven(pool, admin, limit=3).more

    def test_a_patched_payload_is_validated_job_by_job(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        [quiz] = dead(type=GRADING_QUIZ.name)
        [reading] = dead()
        report = redriven(pool, admin, payload_patch={"standard_version": 7})
        assert (report.redriven, report.refused) == (1, 1)
        assert [(s.id, s.code, s.field) for s in report.reasons] == [
            (reading.id, "job.invalid_payload", "payload.standard_version")
        ]
        stored = {r["id"]: r for r in rows(pool)}
        assert stored[quiz.id]["payload"]["standard_version"] == 7
        assert stored[reading.id]["status"] == Status.FAILED
        with pool.connection() as conn:
            event = conn.execute("select data from job_events where kind = 'redriven'").fetchone()
        assert event == {"data": {"previous_error": "document.encrypted", "changed": ["standard_version"]}}

    def test_a_refusal_repeats_no_value(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        dead()
        report = redriven(pool, admin, payload_patch={"document_id": "Erika Mustermann"})
        assert report.refused == 1
        assert "Erika" not in repr(report)

    def test_a_member_cannot_point_a_job_at_something_else(self, pool: SyncPool, dead: Dead, org_id: UUID) -> None:
        member = uuid4()
        dead(created_by=member)
        other = {"document_id": str(uuid4())}
        report = redriven(pool, Viewer(org_id, member, "member"), payload_patch=other)
        assert [s.field for s in report.reasons] == ["payload.document_id"]
        assert redriven(pool, Viewer(org_id, member, "admin"), payload_patch=other).redriven == 1

    def test_the_engines_own_notifications_are_not_rewritten(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        payload = {
            "url": "https://app.example/h",
            "event": "job.completed",
            "subject_id": str(uuid4()),
            "occurred_at": "2026-01-01T00:00:00Z",
        }
        dead(type=NOTIFY_WEBHOOK.name, payload=payload)
        report = redriven(pool, admin, payload_patch={"url": "https://evil.example/"})
        assert [s.field for s in report.reasons] == ["type"]
        assert redriven(pool, admin).redriven == 1

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"rate": 0}, "rate"),
            ({"rate": -1.0}, "rate"),
            ({"rate": float("nan")}, "rate"),
            ({"rate": float("inf")}, "rate"),
            ({"limit": 0}, "limit"),
            ({"limit": 1_000_000}, "limit"),
            ({"payload_patch": ["document_id"]}, "payload_patch"),
        ],
    )
    def test_nonsense_is_refused_with_its_field_named(
        self, pool: SyncPool, dead: Dead, admin: Viewer, options: dict[str, Any], param: str
    ) -> None:
        dead()
        with pytest.raises(InvalidSubmit) as refused:
            redriven(pool, admin, **options)
        assert refused.value.param == param
        assert rows(pool)[0]["status"] == Status.FAILED

    def test_a_patch_nested_without_end_is_refused(self, pool: SyncPool, admin: Viewer) -> None:
        patch: dict[str, Any] = {}
        for _ in range(5000):
            patch = {"a": patch}
        with pytest.raises(InvalidSubmit, match="nested"):
            redriven(pool, admin, payload_patch=patch)

    def test_it_counts_what_could_not_be_redriven_by_reason(
        self, pool: SyncPool, make: Make, dead: Dead, admin: Viewer
    ) -> None:
        parent = make()
        children = [make(type=GRADING_QUIZ.name, parents=(ParentEdge(parent.id),)) for _ in range(3)]
        with pool.connection() as conn, conn.transaction():
            submit(conn, [parent, *children])
            [claimed] = store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30)
            store.settle(conn, WORKER, [Outcome.failed(claimed, {"code": "x", "message": "y"})])
        report = redriven(pool, admin, DeadLetterFilter(types=[GRADING_QUIZ.name]))
        assert (report.redriven, report.skipped) == (0, {"job.parent_ended": 3})
        assert redriven(pool, admin).redriven == 4

    def test_it_works_on_an_event_loop(self, pool: SyncPool, dead: Dead, admin: Viewer, database_url: str) -> None:
        dead(3)

        async def go() -> tuple[int, int, int]:
            async with (
                await open_async_pool(database_url, size=1, application_name="test") as apool,
                apool.connection() as conn,
            ):
                count = await count_dead_letters_async(conn, admin, ALL, payload_patch={})
                report = await redrive_matching_async(conn, admin, ALL, actor="member:x", limit=2)
                purged = await purge_dead_letters_async(conn, admin, ALL)
                return count.total, report.redriven, purged.deleted

        assert asyncio.run(go()) == (3, 2, 1)


class TestPurge:
    def test_failed_jobs_go_with_their_events_and_edges(self, pool: SyncPool, dead: Dead, admin: Viewer) -> None:
        dead(3)
        [foreign] = dead(org_id=uuid4())
        with pool.connection() as conn:
            purged = purge_dead_letters(conn, admin, ALL)
            left = conn.execute("select distinct job_id from job_events").fetchall()
        assert (purged.deleted, purged.kept, purged.more) == (3, 0, False)
        assert [r["id"] for r in rows(pool)] == [r["job_id"] for r in left] == [foreign.id]

    def test_a_job_that_a_waiting_child_names_stays(self, pool: SyncPool, make: Make, admin: Viewer) -> None:
        bad, slow = make(), make()
        child = make(type=GRADING_QUIZ.name, parents=(ParentEdge(bad.id, "run"), ParentEdge(slow.id)))
        with pool.connection() as conn, conn.transaction():
            submit(conn, [bad, slow, child])
            claimed = {c.id: c for c in store.claim(conn, queue="ocr", worker_id=WORKER, lease_seconds=30, limit=2)}
            store.settle(conn, WORKER, [Outcome.failed(claimed[bad.id], {"code": "x", "message": "y"})])
        with pool.connection() as conn:
            assert (purge_dead_letters(conn, admin, ALL).deleted, len(rows(pool))) == (0, 3)
            with conn.transaction():
                store.cancel(conn, [child.id], member_id=None, actor="member:x", reason=None)
            assert purge_dead_letters(conn, admin, ALL).deleted == 1
            assert conn.execute("select parent_id from job_dependencies").fetchall() == [{"parent_id": slow.id}]

    def test_a_job_of_an_unfinished_batch_stays(
        self, pool: SyncPool, make: Make, dead: Dead, admin: Viewer, org_id: UUID
    ) -> None:
        batch_id = ids.new_uuid()
        with pool.connection() as conn:
            insert_batch(conn, NewBatch(batch_id, org_id, None, "upload", 2))
        dead(batch_id=batch_id)
        with pool.connection() as conn:
            assert purge_dead_letters(conn, admin, ALL).kept == 1
        dead(batch_id=batch_id)
        with pool.connection() as conn:
            assert purge_dead_letters(conn, admin, ALL).deleted == 2


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_as_the_rfc_says(target: Any, patch: Any, merged: Any) -> None:
    assert merge_patch(target, patch) == merged
