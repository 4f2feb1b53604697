"""A wake-up to an ended job: what is claimed, how attempts end, what is stored of them, and what commits with them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from broker_harness import SECRET, TEST, Client, Result, Stage, worker

from shared.jobs import Done, JobContext, PermanentError, Priority, RetryableError, Wake, _sql
from shared.settings import Settings
from shared.telemetry import sentry

Eventually = Callable[..., Any]


@pytest.fixture(autouse=True)
def running(settings: Settings, stage: Stage) -> Iterator[Any]:
    with worker(settings, stage) as process:
        yield process


def _retry_delay(row: dict[str, Any], event: dict[str, Any]) -> float:
    return float((row["next_retry_at"] - event["at"]).total_seconds())


class TestClaiming:
    def test_a_wake_up_runs_its_job_to_the_end(self, client: Client, eventually: Eventually) -> None:
        id = client.submit("report", data={"times": 3})
        eventually(lambda: client.status(id) == "completed")
        assert client.kinds(id) == ["accepted", "started", "completed"]
        row = client.row(id)
        assert (row["result"], row["progress"], row["attempt"], row["lease_until"]) == ({"value": "ok"}, 100, 1, None)

    def test_the_best_due_job_runs_whichever_the_wake_up_names(
        self, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        blockers = [client.submit("nap") for _ in range(2)]
        eventually(lambda: len(stage.ran) == 2)
        low = client.submit(wake=False, priority=Priority.LOW)
        high = client.submit(wake=False, priority=Priority.HIGH)
        client.publisher.wake([Wake("test", low, 2)] * 2)
        stage.go.set()
        eventually(lambda: not client.undone())
        assert [id for id, _ in stage.ran[2:]] == [high, low]
        assert all(client.ended_once(id) for id in (*blockers, low, high))

    def test_costs_no_more_for_a_deep_backlog_even_before_postgres_knows_the_table(self, client: Client) -> None:
        """Fresh tables have no statistics, and the planner guesses: the claim must leave it no bad plan to choose."""

        def rows(plan: dict[str, Any]) -> float:
            return max(plan["Actual Rows"] * plan["Actual Loops"], *map(rows, plan.get("Plans", ())), 0)

        client.submit_all([{}] * 1000, wake=False, run_at=datetime.now(UTC))
        with client.pool.connection() as conn, conn.transaction(force_rollback=True):
            explain = "explain (analyze, format json) " + _sql.CLAIM
            parameters = {"queue": "test", "worker_id": uuid4(), "lease": 1, "limit": 1, "window": 17, "age": 600}
            parameters["types"] = [TEST.name]
            answer = conn.execute(explain, parameters).fetchone()
        assert answer is not None
        assert rows(answer["QUERY PLAN"][0]["Plan"]) < 100

    def test_a_job_that_no_worker_here_knows_waits_for_one_that_does(
        self, client: Client, eventually: Eventually
    ) -> None:
        unknown = client.submit_all([{}] * 40, type="test.unhandled")
        known = client.submit()
        eventually(lambda: client.status(known) == "completed")
        assert {client.status(id) for id in unknown} == {"queued"}

    def test_a_job_that_is_not_due_is_left_alone(self, client: Client, stage: Stage, eventually: Eventually) -> None:
        later = client.submit(run_at=datetime.now(UTC) + timedelta(hours=1))
        client.publisher.wake([Wake("test", later, 1)])
        other = client.submit()
        eventually(lambda: client.status(other) == "completed")
        assert client.kinds(later) == ["accepted"]


class TestRetries:
    def test_backs_off_by_policy_within_its_jitter_until_no_try_is_left(
        self, client: Client, eventually: Eventually
    ) -> None:
        id = client.submit("retry")
        delays = []
        for retry in (1, 2):
            row = eventually(lambda n=retry: (r := client.row(id))["retry_count"] == n and r)
            event = [e for e in client.events(id) if e["kind"] == "retrying"][-1]
            delays.append(_retry_delay(row, event))
            time.sleep(max(0.0, delays[-1]))
            client.publisher.wake(_wake(id))
        eventually(lambda: client.status(id) == "failed")
        assert 0.04 <= delays[0] <= 0.06, "0.05 s, a fifth up or down"
        assert 0.08 <= delays[1] <= 0.12, "twice that"
        assert client.kinds(id) == ["accepted", *["started", "retrying"] * 2, "started", "failed"]
        assert client.row(id)["error"] == {"code": "test.busy", "message": "Busy.", "details": {}}

    @pytest.mark.parametrize(("asked", "given"), [(30.0, 30.0), (1e9, 3600.0), (-5.0, 0.0), (float("nan"), 0.0)])
    def test_believes_a_retry_after_within_bounds(
        self, client: Client, stage: Stage, eventually: Eventually, asked: float, given: float
    ) -> None:
        def busy(ctx: JobContext, payload: Any) -> None:
            raise RetryableError("test.busy", "Busy.", retry_after=asked)

        stage.acts["busy"] = busy
        id = client.submit("busy", max_retries=1)
        eventually(lambda: client.row(id)["retry_count"] == 1)
        event = next(e for e in client.events(id) if e["kind"] == "retrying")
        again = datetime.fromisoformat(event["data"]["next_retry_at"])
        assert (again - event["at"]).total_seconds() == pytest.approx(given, abs=0.01)

    def test_a_permanent_error_fails_at_once(self, client: Client, eventually: Eventually) -> None:
        id = client.submit("fail")
        eventually(lambda: client.status(id) == "failed")
        row = client.row(id)
        assert (row["retry_count"], row["error"]["code"], row["error"]["details"]) == (0, "test.never", {"pages": 3})

    def test_a_snooze_costs_no_retry(self, client: Client, eventually: Eventually) -> None:
        id = client.submit("snooze", max_retries=0)
        for attempt in (1, 2, 3):
            eventually(lambda n=attempt: client.row(id)["attempt"] == n and client.status(id) == "queued")
            time.sleep(0.02)
            client.publisher.wake(_wake(id))
        eventually(lambda: client.status(id) == "completed")
        assert client.row(id)["retry_count"] == 0
        assert client.kinds(id).count("snoozed") == 3

    def test_a_surprise_is_stored_as_type_and_frames_and_reported_without_its_text(
        self, client: Client, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reported: list[tuple[BaseException, dict[str, Any]]] = []
        monkeypatch.setattr(sentry, "capture", lambda e, **ids: reported.append((e, ids)))
        id = client.submit("crash", max_retries=0)
        eventually(lambda: client.status(id) == "failed")
        error = client.row(id)["error"]
        assert (error["code"], error["details"]["exception"]) == ("job.internal_error", "ValueError")
        assert any("do_crash" in frame for frame in error["details"]["traceback"])
        with client.pool.connection() as conn:
            stored = conn.execute("select jobs::text, job_events::text from jobs, job_events").fetchall()
        assert SECRET not in str(stored)
        assert [(type(e), ids["job_id"]) for e, ids in reported] == [(ValueError, id)]


class TestResults:
    @pytest.mark.parametrize("result", ["a string", {"value": "a dict"}, Done("wrong")])
    def test_one_that_does_not_fit_fails_with_a_code(
        self, client: Client, stage: Stage, eventually: Eventually, result: Any
    ) -> None:
        stage.acts["odd"] = lambda ctx, payload: result
        id = client.submit("odd")
        eventually(lambda: client.status(id) == "failed")
        assert client.row(id)["error"]["code"] == "job.invalid_result"

    @pytest.mark.parametrize("text", ["nul \x00 in it", "half of a pair \ud800"])
    def test_one_that_cannot_be_stored_fails_the_attempt(
        self, client: Client, stage: Stage, eventually: Eventually, text: str
    ) -> None:
        stage.acts["odd"] = lambda ctx, payload: Result.model_construct(value=text)
        id = client.submit("odd", max_retries=0)
        eventually(lambda: client.status(id) == "failed")
        assert client.row(id)["error"]["code"] == "job.internal_error"

    def test_an_error_that_cannot_be_stored_still_ends_the_job(
        self, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def odd(ctx: JobContext, payload: Any) -> None:
            raise PermanentError("test.odd", "A nul: \x00.", thing=object())

        stage.acts["odd"] = odd
        id = client.submit("odd")
        eventually(lambda: client.status(id) == "failed")
        assert client.row(id)["error"]["code"] == "job.unstorable"

    def test_a_payload_that_does_not_fit_fails_at_once_and_names_only_fields(
        self, client: Client, eventually: Eventually
    ) -> None:
        id = client.submit(wake=False)
        with client.pool.connection() as conn:
            conn.execute(
                "update jobs set payload = jsonb_build_object('seconds', %s::text) where id = %s", (SECRET, id)
            )
        client.publisher.wake(_wake(id))
        eventually(lambda: client.status(id) == "failed")
        error = client.row(id)["error"]
        assert (error["code"], error["details"], SECRET in str(error)) == (
            "job.invalid_payload",
            {"fields": ["seconds"]},
            False,
        )


class TestEffects:
    def test_commit_with_the_result(self, client: Client, eventually: Eventually) -> None:
        id = client.submit("effects")
        eventually(lambda: client.status(id) == "completed")
        assert _effects(client) == 1

    def test_nothing_of_them_is_kept_when_one_raises(
        self, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def broken(conn: Any) -> None:
            raise ValueError(SECRET)

        stage.notes = [broken]
        id = client.submit("effects", max_retries=1)
        eventually(lambda: client.row(id)["retry_count"] == 1)
        assert (_effects(client), client.row(id)["error"]["code"]) == (0, "job.internal_error")
        stage.notes = []
        time.sleep(0.07)
        client.publisher.wake(_wake(id))
        eventually(lambda: client.status(id) == "completed")
        assert _effects(client) == 1

    def test_a_permanent_error_in_one_fails_the_job(self, client: Client, stage: Stage, eventually: Eventually) -> None:
        def gone(conn: Any) -> None:
            raise PermanentError("test.gone", "The document was deleted.")

        stage.notes = [gone]
        id = client.submit("effects")
        eventually(lambda: client.status(id) == "failed")
        assert (_effects(client), client.row(id)["error"]["code"]) == (0, "test.gone")

    def test_one_that_swallows_an_error_of_postgres_does_not_lose_the_job(
        self, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def careless(conn: Any) -> None:
            with contextlib.suppress(psycopg.Error):
                conn.execute("select 1/0")

        stage.notes = [careless]
        id = client.submit("effects", max_retries=0)
        eventually(lambda: client.status(id) == "failed")
        assert _effects(client) == 0

    def test_one_that_always_meets_a_timeout_of_postgres_ends_too(
        self, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def slow(conn: Any) -> None:
            conn.execute("set local statement_timeout = 1")
            conn.execute("select pg_sleep(1)")

        stage.notes = [slow]
        id = client.submit("effects", max_retries=0)
        eventually(lambda: client.status(id) == "failed")
        assert client.row(id)["error"]["details"]["exception"] == "QueryCanceled"

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_losing_postgres_around_the_commit_settles_once(
        self, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        """The connection is lost with the COMMIT unanswered: once before Postgres took it, once after."""
        failed: list[str] = []
        true_exit = psycopg.Transaction.__exit__

        def torn(self: Any, *args: Any) -> Any:
            mine = self._conn.info.parameter_status("application_name") == "gradeline-test" and args[0] is None
            if not mine or failed:
                return true_exit(self, *args)
            failed.append(when)
            if when == "after":
                true_exit(self, *args)
            self._conn.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(psycopg.Transaction, "__exit__", torn)
        id = client.submit("effects")
        eventually(lambda: client.status(id) == "completed" and not client.undone())
        assert failed == [when]
        assert client.ended_once(id)
        assert (_effects(client), client.row(id)["attempt"], len(stage.ran)) == (1, 1, 1)


def _effects(client: Client) -> int:
    with client.pool.connection() as conn:
        row = conn.execute("select count(*) as n from organisations where name = 'effect'").fetchone()
    assert row is not None
    return int(row["n"])


def _wake(id: Any) -> Any:
    return [Wake("test", id, 1)]
