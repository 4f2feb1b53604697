"""The health port answers truthfully, in bounded time, whatever the checks and the callers do."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from shared.telemetry.health import Check, HealthServer


def get(server: HealthServer, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            status, body, kind = answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as e:
        status, body, kind = e.code, e.read(), e.headers["Content-Type"]
    return status, json.loads(body) if kind == "application/json" else body.decode()


def serve(ready: dict[str, Check] | None = None, live: dict[str, Check] | None = None, **kw: Any) -> HealthServer:
    return HealthServer("127.0.0.1", 0, ready or {}, live=live, **kw)


def test_all_well() -> None:
    with serve({"database": lambda: None}, {"threads": lambda: None}) as s:
        assert get(s, "/healthz") == (200, {"status": "ok"})
        assert get(s, "/readyz?verbose=1") == (200, {"status": "ok"})


def test_readiness_names_what_fails_and_liveness_does_not_care() -> None:
    checks: dict[str, Check] = {"database": lambda: "no connection for 12 s", "redis": lambda: None}
    with serve(checks) as s:
        assert get(s, "/healthz")[0] == 200
        assert get(s, "/readyz") == (503, {"status": "failing", "failing": {"database": "no connection for 12 s"}})


def test_what_is_not_alive_is_not_ready() -> None:
    with serve({}, {"heartbeat": lambda: "40 s old"}) as s:
        assert get(s, "/healthz")[0] == get(s, "/readyz")[0] == 503


def test_a_check_that_recovers_is_well_again() -> None:
    answers = iter(["starting", None])
    with serve({"model": lambda: next(answers)}) as s:
        assert get(s, "/readyz")[0] == 503
        assert get(s, "/readyz")[0] == 200


def test_a_check_that_raises_fails_by_type_only() -> None:
    def check() -> str | None:
        raise ValueError("postgresql://user:password@host")

    with serve({"database": check}) as s:
        assert get(s, "/readyz") == (503, {"status": "failing", "failing": {"database": "failed with ValueError"}})


def test_checks_that_hang_are_reported_in_time_and_not_piled_up() -> None:
    release, runs = threading.Event(), []

    def hang() -> str | None:
        runs.append(1)
        release.wait(30)
        return None

    checks: dict[str, Check] = {f"hang{i}": hang for i in range(4)}
    with serve({**checks, "fine": lambda: None}, check_seconds=0.2) as s:
        began = time.monotonic()
        for _ in range(3):
            status, body = get(s, "/readyz")
            assert status == 503
            assert set(body["failing"]) == set(checks)
        assert time.monotonic() - began < 3
        assert len(runs) == 4
        release.set()
        assert get(s, "/readyz")[0] == 200


def test_metrics_and_stats() -> None:
    with serve(stats=lambda: {"running": 3, "queues": ["ocr"]}) as s:
        assert get(s, "/stats") == (200, {"running": 3, "queues": ["ocr"]})
        status, text = get(s, "/metrics")
        assert status == 200
        assert "# TYPE gradeline_jobs_claimed_total counter" in text
        assert get(s, "/elsewhere")[0] == 404


def test_statistics_that_fail_are_a_500_without_the_text() -> None:
    def stats() -> dict[str, Any]:
        raise RuntimeError("secret")

    with serve(stats=stats) as s:
        status, body = get(s, "/stats")
        assert (status, "secret" in json.dumps(body)) == (500, False)


def test_a_silent_caller_does_not_hold_up_others() -> None:
    with serve() as s, socket.create_connection(("127.0.0.1", s.port)):
        assert get(s, "/healthz")[0] == 200


def test_close_frees_the_port_and_may_be_repeated() -> None:
    s = serve().start()
    port = s.port
    s.close()
    s.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    HealthServer("127.0.0.1", port, {}).close()
