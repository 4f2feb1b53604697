"""The scheduler: what was lost is found again in a stated time, by any number of replicas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from broker_harness import Client, Stage, worker

from deploy.local.servers import EmbeddedServers
from services.scheduler import main as scheduler_main
from services.scheduler.exporter import QueueFigures
from services.scheduler.main import Scheduler
from services.scheduler.maintenance import MAX_WAKES, rescue, rewake
from shared.broker import NAMESPACE
from shared.contracts import JOB_TYPES
from shared.jobs import store
from shared.settings import Settings
from shared.telemetry import metrics

Eventually = Callable[..., Any]
QUEUE = f"{NAMESPACE}:test"


def value(metric: Any, *labels: str) -> float:
    return float(metric.labels(*labels)._value.get())


@contextmanager
def running(settings: Settings) -> Iterator[Scheduler]:
    scheduler = Scheduler(settings)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"rescue_seconds": 0.3, "rewake_seconds": 0.3, "health_port": 0})


def get(scheduler: Scheduler, path: str) -> tuple[int, Any]:
    assert scheduler._health is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{scheduler._health.port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def lose(client: Client, id: Any, *, crashes: int = 0) -> None:
    """Have a worker that no longer lives hold the lease of ``id``, which has just run out."""
    with client.pool.connection() as conn:
        conn.execute("update jobs set crash_count = %s where id = %s", (crashes, id))
        store.claim(conn, queue="test", worker_id=uuid4(), lease_seconds=-0.001)


class TestRewake:
    def test_a_job_without_any_message_runs_within_its_interval(
        self, quick: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(quick, stage), running(quick):
            time.sleep(0.3)
            began = time.monotonic()
            id = client.submit(wake=False)
            eventually(lambda: client.status(id) == "completed")
            assert time.monotonic() - began < 2 * quick.rewake_seconds + 0.3

    def test_a_retry_runs_when_its_time_has_come(
        self, quick: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(quick, stage), running(quick):
            id = client.submit("retry")
            eventually(lambda: client.status(id) == "failed")
        assert client.kinds(id).count("started") == 3

    def test_flushall_in_mid_load_loses_no_job(
        self, quick: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(quick, stage), worker(quick, stage), running(quick):
            ids = []
            for _ in range(10):
                ids += client.submit_all([{"do": "nap", "seconds": 0.002}] * 10)
                client.redis.flushall()
                time.sleep(0.02)
            eventually(lambda: not client.undone())
        assert all(client.ended_once(id) for id in ids)

    def test_tops_up_only_what_is_missing_and_to_a_bound(self, client: Client, eventually: Eventually) -> None:
        def ring() -> int:
            return rewake(client.pool, client.publisher, client.redis)

        client.submit_all([{}] * 5, wake=False)
        assert ring() == 5
        eventually(lambda: client.redis.llen(QUEUE) == 5)
        assert ring() == 0
        client.redis.lpop(QUEUE, 2)
        assert ring() == 2
        client.submit_all([{}] * 600, wake=False)
        ring()
        eventually(lambda: client.redis.llen(QUEUE) == MAX_WAKES)
        assert ring() == 0

    def test_does_nothing_while_redis_is_away(self, servers: EmbeddedServers, client: Client) -> None:
        client.submit_all([{}] * 5, wake=False)
        servers.stop_valkey()
        try:
            assert rewake(client.pool, client.publisher, client.redis) == 0
        finally:
            servers.start_valkey(empty=True)


class TestRescue:
    def test_counts_what_was_given_back_and_what_is_dead(self, client: Client) -> None:
        before = [value(metrics.JOBS_RESCUED, "test", outcome) for outcome in ("requeued", "dead")]
        once, thrice = client.submit(wake=False), None
        lose(client, once)
        thrice = client.submit(wake=False)
        lose(client, thrice, crashes=2)
        assert rescue(client.pool, client.publisher, 0) == 2
        assert rescue(client.pool, client.publisher, 0) == 0
        after = [value(metrics.JOBS_RESCUED, "test", outcome) for outcome in ("requeued", "dead")]
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
        assert (client.status(once), client.status(thrice)) == ("queued", "failed")
        assert client.row(thrice)["error"]["code"] == "job.crashed"

    def test_finds_all_however_many_there_are(self, client: Client) -> None:
        client.submit_all([{}] * 1100, wake=False)
        with client.pool.connection() as conn:
            store.claim(conn, queue="test", worker_id=uuid4(), lease_seconds=-1, limit=1100)
        assert rescue(client.pool, client.publisher, 0) == 1100

    def test_leaves_a_held_lease_alone(self, client: Client) -> None:
        client.submit(wake=False)
        with client.pool.connection() as conn:
            store.claim(conn, queue="test", worker_id=uuid4(), lease_seconds=5)
        assert rescue(client.pool, client.publisher, 0) == 0


class TestReplicas:
    def test_two_at_once_do_no_harm(
        self, quick: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        ids = client.submit_all([{}] * 40, wake=False)
        for _ in range(10):
            lose(client, ids[0])
        before = value(metrics.JOBS_RESCUED, "test", "requeued")
        threads = [threading.Thread(target=rescue, args=(client.pool, client.publisher, 0)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert value(metrics.JOBS_RESCUED, "test", "requeued") - before == 10
        with running(quick), running(quick), worker(quick, stage):
            eventually(lambda: not client.undone())
        assert all(client.ended_once(id) for id in ids)
        assert len(stage.ran) == 40


class TestFigures:
    def test_show_every_queue_with_zeros_and_what_is_there(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(type(JOB_TYPES), "queues", lambda self: ["empty", "test"])
        due, _held = client.submit_all([{}] * 2, wake=False)
        client.submit(wake=False, run_at=datetime.now(UTC) + timedelta(hours=1))
        with client.pool.connection() as conn:
            store.claim(conn, queue="test", worker_id=uuid4(), lease_seconds=5)
            conn.execute("update jobs set run_at = run_at - interval '1 minute' where status = 'queued'")
        figures = QueueFigures(client.pool)
        figures.collect()
        states = ("due", "later", "processing")
        assert [value(metrics.QUEUE_DEPTH, "test", s) for s in states] == [1, 1, 1]
        assert [value(metrics.QUEUE_DEPTH, "empty", s) for s in states] == [0, 0, 0]
        assert value(metrics.QUEUE_OLDEST, "test") == pytest.approx(60, abs=2)
        with client.pool.connection() as conn:
            conn.execute("delete from jobs")
        figures.collect()
        assert [value(metrics.QUEUE_DEPTH, "test", s) for s in states] == [0, 0, 0]
        assert value(metrics.QUEUE_OLDEST, "test") == 0
        assert due is not None


class TestHealth:
    def test_duties_survive_an_outage_of_postgres(
        self,
        quick: Settings,
        servers: EmbeddedServers,
        client: Client,
        eventually: Eventually,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(scheduler_main, "_STALE_SECONDS", 8.0)
        with running(quick) as scheduler:
            eventually(lambda: get(scheduler, "/readyz")[0] == 200)
            servers.stop_postgres()
            try:
                for name in scheduler._done_at:  # as if it had been away for that long
                    scheduler._done_at[name] -= 8.0
                eventually(lambda: get(scheduler, "/readyz")[0] == 503)
                assert get(scheduler, "/healthz")[0] == 200, "a restart would not help"
            finally:
                servers.start_postgres()
            client.pool.check()
            id = client.submit(wake=False)
            eventually(lambda: client.redis.llen(QUEUE) == 1)
            eventually(lambda: get(scheduler, "/readyz")[0] == 200, within=15)
            assert set(get(scheduler, "/stats")[1]["duties"]) == {"rescue", "rewake", "figures", "prune"}
            assert client.status(id) == "queued"

    def test_liveness_fails_when_the_duties_no_longer_get_their_turn(
        self, quick: Settings, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler_main, "_STALE_SECONDS", 0.5)
        with running(quick) as scheduler:
            scheduler._apscheduler.pause()
            eventually(lambda: get(scheduler, "/healthz")[0] == 503)
            assert "no beat" in get(scheduler, "/healthz")[1]["failing"]["beat"]

    @pytest.mark.parametrize("away", [False, True])
    def test_sigterm_stops_the_process_at_once_also_without_postgres(
        self, settings: Settings, servers: EmbeddedServers, tmp_path: Path, eventually: Eventually, away: bool
    ) -> None:
        log = tmp_path / "log"
        with log.open("w") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "services.scheduler"],
                env={
                    **os.environ,
                    "DATABASE_URL": settings.database_url.get_secret_value(),
                    "REDIS_URL": settings.redis_url.get_secret_value(),
                },
                stdout=out,
            )
        try:
            eventually(lambda: "scheduler.started" in log.read_text(), within=20)
            if away:
                servers.stop_postgres()
                eventually(lambda: "duty.failed" in log.read_text() or time.sleep(1.5) or True)
            asked = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(15) == 0
            assert time.monotonic() - asked < 4
        finally:
            child.kill()
            child.wait()
            if away:
                servers.start_postgres()
