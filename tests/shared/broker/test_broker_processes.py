"""Worker processes told to stop, killed, or paused: what they held runs elsewhere, and is charged as it should be."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_harness import SECRET, Client, Stage, spawn, worker

from services.scheduler.maintenance import rescue
from shared.broker import NAMESPACE
from shared.jobs import Wake
from shared.settings import Settings

Eventually = Callable[..., Any]


@pytest.fixture
def start(settings: Settings, client: Client, eventually: Eventually) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a worker process and waits until it has reached Postgres."""
    children: list[subprocess.Popen[str]] = []

    def begin(**env: str) -> subprocess.Popen[str]:
        child = spawn(settings, **env)
        children.append(child)
        eventually(lambda: _known(client, child.pid), within=20)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


def _known(client: Client, pid: int) -> bool:
    with client.pool.connection() as conn:
        return conn.execute("select 1 from workers where pid = %s", (pid,)).fetchone() is not None


def _running(client: Client, *ids: Any) -> bool:
    return all(client.status(id) == "processing" for id in ids)


class TestSigterm:
    def test_lets_short_jobs_finish_releases_long_ones_and_gives_back_what_was_only_fetched(
        self, start: Any, client: Client, stage: Stage, settings: Settings, eventually: Eventually
    ) -> None:
        child = start()
        short, long = client.submit("nap", seconds=0.7), client.submit("sleep", seconds=6.0)
        eventually(lambda: _running(client, short, long))
        waiting = client.submit_all([{}] * 3)
        eventually(lambda: client.redis.llen(f"{NAMESPACE}:test") >= 3)
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(15) == 0
        took = time.monotonic() - asked
        assert took < settings.shutdown_grace_seconds + 2.0 + 3.0, (
            "the grace, two for a handler that is deaf, and a few"
        )
        assert client.kinds(short) == ["accepted", "started", "completed"]
        assert client.kinds(long) == ["accepted", "started", "released"]
        row = client.row(long)
        assert (row["status"], row["retry_count"], row["stall_count"]) == ("queued", 0, 0)
        assert client.redis.llen(f"{NAMESPACE}:test") >= 3
        with worker(settings, stage):
            with client.pool.connection() as conn:
                conn.execute("""update jobs set payload = '{"do": "nothing"}' where id = %s""", (long,))
            client.publisher.wake([Wake("test", long, 1)])
            eventually(lambda: not client.undone())
        assert all(client.ended_once(id) for id in (long, *waiting))

    def test_a_second_one_ends_the_grace(self, start: Any, client: Client, eventually: Eventually) -> None:
        child = start(SHUTDOWN_GRACE_SECONDS="60")
        id = client.submit("nap", seconds=30)
        eventually(lambda: _running(client, id))
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        asked = time.monotonic()
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - asked < 4
        assert client.kinds(id) == ["accepted", "started", "released"]

    def test_an_idle_one_stops_at_once(self, start: Any) -> None:
        child = start()
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - asked < 3


class TestDeath:
    def test_a_killed_worker_s_job_is_rescued_and_its_events_tell_the_story(
        self, start: Any, client: Client, stage: Stage, settings: Settings, eventually: Eventually
    ) -> None:
        child = start()
        id = client.submit("nap", seconds=2.0)
        eventually(lambda: _running(client, id))
        killed = time.monotonic()
        child.kill()
        eventually(lambda: rescue(client.pool, client.publisher), within=settings.lease_seconds + 1)
        assert time.monotonic() - killed <= settings.lease_seconds + 1
        stage.go.set()
        with worker(settings, stage):
            eventually(lambda: client.status(id) == "completed")
        assert client.kinds(id) == ["accepted", "started", "crashed", "started", "completed"]
        row = client.row(id)
        assert (row["attempt"], row["crash_count"], row["stall_count"], row["retry_count"]) == (2, 1, 0, 0)
        assert [e["actor"].partition(":")[0] for e in client.events(id)][2] == "scheduler"

    def test_a_worker_paused_past_its_lease_changes_nothing_when_it_goes_on(
        self, start: Any, client: Client, stage: Stage, settings: Settings, eventually: Eventually
    ) -> None:
        child = start()
        id = client.submit("report", data={"times": 2000})
        eventually(lambda: client.row(id)["progress"] > 3)
        os.kill(child.pid, signal.SIGSTOP)
        try:
            eventually(lambda: rescue(client.pool, client.publisher), within=settings.lease_seconds + 1)
            stage.acts["report"] = stage.do_nothing
            with worker(settings, stage):
                client.publisher.wake([Wake("test", id, 1)])
                eventually(lambda: client.status(id) == "completed")
            before = (client.row(id), client.events(id))
        finally:
            os.kill(child.pid, signal.SIGCONT)
        another = client.submit()  # the paused one is itself again: it serves this
        eventually(lambda: client.status(another) == "completed")
        assert (client.row(id), client.events(id)) == before
        assert before[0]["attempt"] == 2


class TestPrivacy:
    def test_the_text_of_an_unknown_exception_is_in_no_log_line(
        self, start: Any, client: Client, eventually: Eventually
    ) -> None:
        child = start()
        ids = [client.submit("crash", max_retries=0), client.submit(data={"essay": SECRET})]
        eventually(lambda: not client.undone())
        assert [client.status(id) for id in ids] == ["failed", "completed"]
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=10)
        assert str(ids[0]) in out
        assert "job.internal_error" in out
        assert not [word for word in ("Emma", "photosynthesis", "magic") if word in out]
