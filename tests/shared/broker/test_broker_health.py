"""What a worker's health port says: alive until only a restart helps, ready while its servers are there."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_harness import Client, Stage, worker

from deploy.local.servers import EmbeddedServers
from shared.broker import WorkerProcess
from shared.jobs import store
from shared.settings import Settings

Eventually = Callable[..., Any]


@pytest.fixture
def process(settings: Settings, stage: Stage) -> Iterator[WorkerProcess]:
    with worker(settings.model_copy(update={"health_port": 0}), stage) as process:
        yield process


def get(process: WorkerProcess, path: str) -> tuple[int, Any]:
    assert process._health is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{process._health.port}{path}", timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def test_a_healthy_worker_is_alive_ready_and_counts_what_it_did(
    process: WorkerProcess, client: Client, eventually: Eventually
) -> None:
    ids = [client.submit(), client.submit("fail")]
    eventually(lambda: not client.undone())
    assert get(process, "/healthz")[0] == get(process, "/readyz")[0] == 200
    eventually(lambda: not get(process, "/stats")[1]["running"])
    stats = get(process, "/stats")[1]
    assert (stats["ended"], stats["queue"], stats["job_types"]) == ({"completed": 1, "failed": 1}, "test", ["test.job"])
    assert len(ids) == 2


class TestLiveness:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_fails_when_the_heartbeat_is_dead(
        self, process: WorkerProcess, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: Any) -> Any:
            raise SystemExit

        monkeypatch.setattr(store, "heartbeat", die)
        eventually(lambda: get(process, "/healthz") == _failing("heartbeat", "the heartbeat thread is dead"))

    def test_fails_when_a_consumer_is_dead(self, process: WorkerProcess, eventually: Eventually) -> None:
        process._worker.consumers["test"].stop()
        eventually(lambda: get(process, "/healthz") == _failing("threads", "dead: consumer test"))

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_fails_when_a_worker_thread_is_dead(
        self, process: WorkerProcess, client: Client, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: Any) -> None:
            raise SystemExit

        monkeypatch.setattr(process._worker.workers[0], "process_message", die)
        eventually(lambda: [client.submit()] and not process._worker.workers[0].is_alive())
        assert get(process, "/healthz") == _failing("threads", "dead: worker thread 0")

    def test_fails_when_the_publisher_is_dead(self, process: WorkerProcess) -> None:
        process.publisher.close()
        assert get(process, "/healthz") == _failing("threads", "dead: publisher")

    def test_does_not_depend_on_the_servers(
        self, process: WorkerProcess, servers: EmbeddedServers, eventually: Eventually
    ) -> None:
        servers.stop_valkey()
        try:
            eventually(lambda: get(process, "/readyz")[1].get("failing", {}).get("redis") == "ConnectionError")
            assert get(process, "/healthz")[0] == 200
        finally:
            servers.start_valkey(empty=True)
        eventually(lambda: get(process, "/readyz")[0] == 200)


def test_readiness_fails_while_no_heartbeat_reaches_postgres(
    process: WorkerProcess, servers: EmbeddedServers, client: Client, eventually: Eventually
) -> None:
    servers.stop_postgres()
    try:
        process.heartbeat._beat_at -= 4.9  # as if it had been away for that long
        eventually(lambda: get(process, "/readyz")[0] == 503)
        assert list(get(process, "/readyz")[1]["failing"]) == ["postgres"]
        assert get(process, "/healthz")[0] == 200
    finally:
        servers.start_postgres()
    client.pool.check()
    eventually(lambda: get(process, "/readyz")[0] == 200)
    id = client.submit()
    eventually(lambda: client.status(id) == "completed")


def _failing(check: str, reason: str) -> tuple[int, Any]:
    return 503, {"status": "failing", "failing": {check: reason}}
