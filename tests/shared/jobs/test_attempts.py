"""The history of attempts: each with its worker, its end, what it said and how far it came."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from shared.db import SyncPool
from shared.jobs import AttemptPage, EventKind, Outcome, attempts, store
from shared.jobs.attempts import LOG_LINES, _attempts
from shared.jobs.queries import Viewer
from shared.jobs.views import attempts_json
from tests.shared.jobs.insight import WORKER, Desk, desk, nodes

__all__ = ["desk"]
BROKEN = {
    "code": "job.internal_error",
    "message": "Something went wrong.",
    "details": {"exception": "KeyError", "traceback": ["handler.py:12 run", "pages.py:7 turn"]},
}


def history(
    desk: Desk, id: UUID, viewer: Viewer | None = None, before: int | None = None, limit: int = 20
) -> AttemptPage:
    with desk.pool.connection() as conn:
        return attempts(conn, id, viewer, before=before, limit=limit)


def say(pool: SyncPool, id: UUID, attempt: int, *messages: str) -> None:
    with pool.connection() as conn:
        for message in messages:
            store.log(conn, id, attempt, WORKER, {"message": message, "page": 3})


def test_a_job_that_was_never_tried_has_no_attempts(desk: Desk) -> None:
    assert history(desk, desk.add()) == AttemptPage((), None)


def test_each_attempt_tells_who_when_how_it_ended_and_what_it_said(desk: Desk) -> None:
    id = desk.add()
    desk.worker()
    [first] = desk.claim()
    with desk.pool.connection() as conn:
        store.progress(conn, id, 1, WORKER, 20, "Reading page 1")
        store.progress(conn, id, 1, WORKER, 60, "Reading page 2")
    say(desk.pool, id, 1, "one", "two")
    desk.settle(Outcome.retry(first, BROKEN, 0))
    [_second] = desk.claim()
    say(desk.pool, id, 2, "three")
    found = history(desk, id).attempts
    assert [a.number for a in found] == [2, 1], "newest first"
    running, tried = found
    assert (running.outcome, running.ended_at, running.error) == (None, None, None)
    assert [line.message for line in running.log] == ["three"]
    assert tried.outcome is EventKind.RETRYING
    assert tried.started_at <= tried.ended_at <= running.started_at  # type: ignore[operator]
    assert (tried.worker_id, tried.host, tried.pid) == (str(WORKER), "room-1", 4711)
    assert (tried.percent, tried.step) == (60, "Reading page 2")
    assert [(line.message, line.fields) for line in tried.log] == [("one", {"page": 3}), ("two", {"page": 3})]
    assert tried.traceback == ("handler.py:12 run", "pages.py:7 turn")


def test_host_and_pid_are_gone_with_the_worker(desk: Desk) -> None:
    id = desk.add()
    desk.worker()
    desk.claim()
    desk.sql("delete from workers")
    [only] = history(desk, id).attempts
    assert (only.worker_id, only.host, only.pid) == (str(WORKER), None, None)
    assert attempts_json(history(desk, id))["items"][0]["worker"] == {"id": str(WORKER)}


@pytest.mark.parametrize(("role", "inside"), [("member", False), ("admin", True), ("super_admin", True)])
def test_frames_are_for_administrators(desk: Desk, role: str, inside: bool) -> None:
    me = desk.member(role)
    id = desk.add(created_by=me)
    desk.settle(Outcome.failed(desk.claim()[0], BROKEN))
    page = attempts_json(history(desk, id, Viewer(desk.org_id, me, role)))
    error = page["items"][0]["error"]
    assert (error["code"], error["message"]) == ("job.internal_error", "Something went wrong.")
    assert ("traceback" in error, "exception" in error) == (inside, inside)
    assert ("handler.py:12" in str(page)) == inside


def test_what_happened_after_an_attempt_is_not_its_end(desk: Desk) -> None:
    id = desk.add()
    desk.settle(Outcome.retry(desk.claim()[0], {"code": "x.y", "message": "Busy."}, 3600))
    with desk.pool.connection() as conn, conn.transaction():
        store.cancel(conn, [id], member_id=None, actor="system", reason=None)
    [only] = history(desk, id).attempts
    assert only.outcome is EventKind.RETRYING


@pytest.mark.parametrize("how", ["snoozed", "released", "cancelled"])
def test_ends_without_a_failure_are_told(desk: Desk, how: str) -> None:
    id = desk.add()
    [claimed] = desk.claim()
    if how == "cancelled":
        with desk.pool.connection() as conn, conn.transaction():
            store.cancel(conn, [id], member_id=None, actor="system", reason=None)
    else:
        desk.settle(Outcome.released(claimed) if how == "released" else Outcome.snoozed(claimed, "Too early", 5))
    assert history(desk, id).attempts[0].outcome == how


def test_pages_go_on_where_the_one_before_ended(desk: Desk) -> None:
    id = desk.add()
    for _ in range(7):
        desk.settle(Outcome.released(desk.claim()[0]))
    seen, before = [], None
    while True:
        page = history(desk, id, before=before, limit=3)
        seen.append([a.number for a in page.attempts])
        if (before := page.before) is None:
            break
    assert seen == [[7, 6, 5], [4, 3, 2], [1]]
    assert history(desk, id, before=1) == AttemptPage((), None)


def test_thousands_of_lines_cost_no_more_than_those_shown(desk: Desk) -> None:
    id = desk.add()
    for attempt in (1, 2, 3):
        [claimed] = desk.claim()
        desk.sql(
            """
            with s as (
              update jobs set event_seq = event_seq + 5000 where id = %(id)s returning event_seq - 5000 as at
            )
            insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
            select %(id)s, s.at + g, %(org)s, case when g %% 2 = 0 then 'log' else 'progress' end, %(attempt)s,
                   'worker:x', jsonb_build_object('message', g, 'percent', g / 50, 'step', 'x')
              from s, generate_series(1, 5000) g
            """,
            id=id, org=desk.org_id, attempt=attempt,
        )  # fmt: skip
        desk.settle(Outcome.released(claimed))
    page = history(desk, id)
    assert [a.number for a in page.attempts] == [3, 2, 1]
    for one in page.attempts:
        assert one.outcome is EventKind.RELEASED
        assert [int(line.message) for line in one.log] == list(range(5000 - 2 * LOG_LINES + 2, 5001, 2))
        assert one.log_truncated
        assert one.percent == 99


def test_events_that_were_pruned_leave_the_rest_readable(desk: Desk) -> None:
    id = desk.add()
    for attempt in (1, 2):
        [claimed] = desk.claim()
        say(desk.pool, id, attempt, *"abc")
        desk.settle(Outcome.released(claimed))
    desk.sql("delete from job_events where kind = 'log'")
    assert [(a.number, a.outcome, a.log) for a in history(desk, id).attempts] == [
        (2, EventKind.RELEASED, ()),
        (1, EventKind.RELEASED, ()),
    ]


def test_another_schools_job_has_no_attempts(desk: Desk) -> None:
    id = desk.add()
    desk.claim()
    assert history(desk, id, Viewer(uuid4(), uuid4(), "admin")) == AttemptPage((), None)


def test_attempts_are_found_by_the_events_key_alone(desk: Desk) -> None:
    id = desk.add()
    desk.claim()
    query = next(_attempts(id, None, None, 20))
    [plan] = desk.sql(f"explain (format json) {query.sql}", **query.parameters)
    on_events = [n for n in nodes(plan["QUERY PLAN"][0]["Plan"]) if n.get("Relation Name") == "job_events"]
    assert on_events
    assert {n.get("Index Name", "job_events_pkey") for n in on_events} == {"job_events_pkey"}
    assert "Seq Scan" not in {n["Node Type"] for n in on_events}
