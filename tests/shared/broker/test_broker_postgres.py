"""Leases and the fence, with Postgres restarted, cut off, or gone for longer than a lease."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from broker_harness import Client, Payload, Stage, worker

from deploy.local.servers import EmbeddedServers
from shared.jobs import JobContext, LeaseLost, Wake, store
from shared.settings import Settings

Eventually = Callable[..., Any]
CUT = """
select pg_terminate_backend(pid) from pg_stat_activity
 where datname = current_database() and application_name like 'gradeline-%'
"""


def with_times(settings: Settings, *, lease: float, beat: float = 0.2) -> Settings:
    return settings.model_copy(update={"lease_seconds": lease, "heartbeat_seconds": beat})


class TestHeartbeat:
    def test_keeps_the_lease_of_a_job_longer_than_it(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(with_times(settings, lease=0.8), stage):
            id = client.submit("nap", seconds=2.0)
            assert stage.began.wait(5)
            while client.status(id) == "processing":
                assert _rescue(client) == ()
                time.sleep(0.1)
        assert client.kinds(id) == ["accepted", "started", "completed"]

    def test_a_long_settling_of_one_job_costs_the_others_no_lease(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def slow(conn: Any) -> None:
            assert stage.go.wait(10)

        stage.notes = [slow]
        with worker(with_times(settings, lease=1.0), stage) as process:
            slow_id = client.submit("effects")
            other = client.submit("sleep", seconds=2.5)
            eventually(lambda: len(stage.ran) == 2)
            for _ in range(20):
                time.sleep(0.1)
                assert _rescue(client) == ()
            assert process.heartbeat.age < 1
            stage.go.set()
            eventually(lambda: not client.undone())
        assert client.kinds(slow_id) == client.kinds(other) == ["accepted", "started", "completed"]

    def test_a_job_taken_by_another_is_stopped_here(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(settings, stage, concurrency=1) as process:
            id = client.submit("nap", seconds=20)
            assert stage.began.wait(5)
            with client.pool.connection() as conn:
                conn.execute("update jobs set attempt = attempt + 1, worker_id = new_id() where id = %s", (id,))
            eventually(lambda: process.stats()["running"] == 0)
            assert process.runs.counts == {"lost": 1}
        assert client.status(id) == "processing", "the other's"

    def test_a_result_that_comes_while_another_attempt_runs_changes_nothing(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(with_times(settings, lease=60.0, beat=30.0), stage, concurrency=1) as process:
            act = stage.do_effects
            stage.acts["act"] = lambda ctx, payload: stage.go.wait(10) and act(ctx, payload)
            id = client.submit("act")
            assert stage.began.wait(5)
            with client.pool.connection() as conn:
                conn.execute("update jobs set attempt = attempt + 1 where id = %s", (id,))
            before = client.row(id)
            stage.go.set()
            eventually(lambda: process.stats()["running"] == 0)
            assert process.runs.counts == {"lost": 1}
        assert client.row(id) == before
        assert client.kinds(id) == ["accepted", "started"]
        with client.pool.connection() as conn:
            assert conn.execute("select 1 from organisations where name = 'effect'").fetchone() is None


class TestOutages:
    def test_a_wake_up_is_not_spent_on_finding_out_that_a_pooled_connection_is_dead(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(settings, stage):
            for _ in range(3):
                id = client.submit()
                eventually(lambda id=id: client.status(id) == "completed")
                with client.pool.connection() as conn:
                    conn.execute(CUT)
            id = client.submit()
            eventually(lambda: client.status(id) == "completed", within=2)

    def test_a_job_that_ends_while_postgres_is_away_is_settled_after(
        self, settings: Settings, servers: EmbeddedServers, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(with_times(settings, lease=15.0), stage) as process:
            id = client.submit("nap")
            assert stage.began.wait(5)
            servers.stop_postgres()
            try:
                stage.go.set()
                time.sleep(0.4)
            finally:
                servers.start_postgres()
            client.pool.check()
            eventually(lambda: process.stats()["running"] == 0)
            assert client.ended_once(id)
            after = client.submit()
            eventually(lambda: client.status(after) == "completed")
        assert len(stage.ran) == 2

    @pytest.mark.parametrize("how", ["stopped", "hanging"])
    def test_a_job_is_stopped_when_postgres_is_away_for_longer_than_its_lease(
        self,
        settings: Settings,
        servers: EmbeddedServers,
        client: Client,
        stage: Stage,
        eventually: Eventually,
        how: str,
    ) -> None:
        def act(ctx: JobContext, payload: Any) -> None:
            try:
                stage.do_nap(ctx, payload)
            except BaseException as e:
                stage.notes.append((type(e), time.monotonic()))
                raise

        stage.acts["act"] = act
        with worker(with_times(settings, lease=1.0), stage) as process:
            client.submit("act")
            assert stage.began.wait(5)
            eventually(lambda: process.heartbeat._conn is not None)
            away = time.monotonic()
            pids = _backends(client) if how == "hanging" else []
            if how == "stopped":
                servers.stop_postgres()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                eventually(lambda: stage.notes, within=4)
                stage.acts["act"] = stage.do_nothing  # from its next attempt on
                assert stage.notes[0][0] is LeaseLost
                assert 0.5 < stage.notes[0][1] - away < 2.0
                assert process.heartbeat.alive
                if how == "hanging":
                    # The beat that hung was cut off, and the next one reached a Postgres that answers.
                    eventually(lambda: process.heartbeat.age < 1, within=5)
            finally:
                if how == "stopped":
                    servers.start_postgres()
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            client.pool.check()
            eventually(lambda: not client.undone())
        # Given back by the worker itself, which had stopped it: nobody is charged.
        assert client.kinds(stage.ran[0][0]) == ["accepted", "started", "released", "started", "completed"]
        row = client.row(stage.ran[0][0])
        assert (row["retry_count"], row["stall_count"], row["crash_count"]) == (0, 0, 0)

    def test_cutting_connections_again_and_again_ends_every_job_once(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        over = threading.Event()

        def cut() -> None:
            with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as conn:
                while not over.wait(0.07):
                    conn.execute(CUT)

        settings = with_times(settings, lease=2.0)
        with worker(settings, stage, concurrency=3), worker(settings, stage, concurrency=3):
            cutter = threading.Thread(target=cut)
            cutter.start()
            ids = client.submit_all([{"do": "effects"}] * 150 + [{"do": "nap", "seconds": 0.2}] * 10)
            deadline = time.monotonic() + 20
            while client.undone() and time.monotonic() < deadline:
                time.sleep(0.2)
                with client.pool.connection() as conn, conn.transaction():
                    moved = store.rescue(conn)
                client.publisher.wake([*moved.wakes, *_wakes(client)])
                if time.monotonic() > deadline - 18:
                    over.set()
            cutter.join()
            eventually(lambda: not client.undone())
        assert all(client.ended_once(id) for id in ids)
        with client.pool.connection() as conn:
            row = conn.execute("select count(*) as n from organisations where name = 'effect'").fetchone()
        assert row == {"n": 150}, "each effect committed with its result, and once"


def _backends(client: Client) -> list[int]:
    """The server processes behind the worker's connections: stopped, they are a Postgres that never answers."""
    with client.pool.connection() as conn:
        rows = conn.execute(
            "select pid from pg_stat_activity"
            " where datname = current_database() and application_name like 'gradeline-%'"
        ).fetchall()
    return [r["pid"] for r in rows]


def _rescue(client: Client) -> Any:
    with client.pool.connection() as conn, conn.transaction():
        return store.rescue(conn).jobs


def _wakes(client: Client) -> Any:
    with client.pool.connection() as conn:
        rows = conn.execute("select id from jobs where status = 'queued' limit 20").fetchall()
    return [Wake("test", r["id"], 1) for r in rows]


class TestNotTheJobsFault:
    @pytest.mark.parametrize("where", ["progress", "log", "own reading"])
    def test_a_session_lost_under_a_handler_costs_no_retry(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, where: str
    ) -> None:
        def act(ctx: JobContext, payload: Payload) -> None:
            if ctx.job.attempt > 1:
                return
            with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as conn:
                if where == "own reading":
                    with ctx.connection() as own:
                        conn.execute("select pg_terminate_backend(%s)", (own.info.backend_pid,))
                        own.execute("select 1")
                else:
                    conn.execute(CUT)
            ctx.progress(50, "half") if where == "progress" else ctx.log("half")

        stage.acts["act"] = act
        with worker(settings, stage):
            id = client.submit("act")
            eventually(lambda: client.pool.check() or client.kinds(id)[-1] in ("completed", "snoozed"))
            time.sleep(max(0.0, (client.row(id)["run_at"] - datetime.now(UTC)).total_seconds()))
            client.publisher.wake([Wake("test", id, 1)])
            eventually(lambda: client.status(id) == "completed")
        assert client.row(id)["retry_count"] == 0
        again = ["snoozed", "started"] if where == "own reading" else []
        assert client.kinds(id) == ["accepted", "started", *again, "completed"]
