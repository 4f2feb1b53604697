"""What reaches Sentry, looked at where it arrives: a stand-in ingest endpoint on a real socket."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SECRET = "Anna-Lena Mustermann"

PROGRAM = f"""
import logging, sys, threading
from shared.settings import Settings
from shared.jobs.errors import PermanentError
from shared.telemetry import sentry, logging as tl
settings = Settings(environment='test')
tl.configure(settings, 'grading_worker')
print(sentry.init(settings, 'grading_worker'), flush=True)
import sentry_sdk
secret = {SECRET!r}

def grade(answer):
    local_answer = answer * 2
    sentry_sdk.add_breadcrumb(category='http', message=secret, data={{'url': secret}})
    sentry_sdk.set_user({{'email': secret}}); sentry_sdk.set_extra('payload', secret)
    sentry_sdk.set_tag('student', secret); sentry_sdk.set_context('job', {{'payload': secret}})
    logging.getLogger('dramatiq.worker').error('failed: %s', secret)
    try:
        int(answer)
    except ValueError as e:
        e.add_note(secret)
        if MODE == 'job_error':
            raise PermanentError('grading.no_key', 'The standard has no questions.', answer=answer) from e
        raise RuntimeError(secret) from e

MODE = sys.argv[1]
sentry_sdk.capture_message(secret)
with tl.bound(job_id='job_01', org_id='org_01', attempt=2):
    if MODE == 'uncaught':
        grade(secret)
    elif MODE == 'thread':
        t = threading.Thread(target=grade, args=(secret,)); t.start(); t.join()
    else:
        try:
            grade(secret)
        except Exception as e:
            sentry.capture(e, job_type='grading.quiz')
sentry_sdk.flush(5)
"""


class Ingest(ThreadingHTTPServer):
    """Keeps every envelope it is sent, unpacked."""

    daemon_threads = True
    bodies: list[bytes]

    @property
    def events(self) -> list[dict[str, Any]]:
        items = [json.loads(line) for body in self.bodies for line in body.splitlines() if line.startswith(b"{")]
        return [i for i in items if "exception" in i or "message" in i]


class Handler(BaseHTTPRequestHandler):
    server: Ingest

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    server = Ingest(("127.0.0.1", 0), Handler)
    server.bodies = []
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(mode: str, dsn: str | None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SENTRY")}
    if dsn is not None:
        env["SENTRY_DSN"] = dsn
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], cwd=ROOT, env=env, timeout=60, capture_output=True, text=True
    )


@pytest.mark.parametrize("mode", ["caught", "uncaught", "thread", "job_error"])
def test_no_secret_leaves_and_the_job_is_tagged(ingest: Ingest, mode: str) -> None:
    out = run(mode, f"http://public@127.0.0.1:{ingest.server_port}/1")
    assert out.stdout.startswith("True"), out.stderr
    everything = b"\n".join(ingest.bodies).decode()
    assert "Anna" not in everything
    assert "Mustermann" not in everything
    assert "local_answer" not in everything
    (event,) = ingest.events
    assert event["tags"]["service"] == "grading_worker"
    if mode in ("caught", "job_error"):  # elsewhere the binding is over, or another thread's
        assert {"job_id": "job_01", "org_id": "org_01", "attempt": "2"}.items() <= event["tags"].items()
    inner, outer = event["exception"]["values"]
    assert inner["type"] == "ValueError"
    assert not inner["value"]
    assert inner["stacktrace"]["frames"][-1]["function"] == "grade"
    if mode == "job_error":
        assert outer["value"] == "grading.no_key: The standard has no questions."
        assert event["tags"]["job_type"] == "grading.quiz"
    else:
        assert outer["type"] == "RuntimeError"
        assert not outer["value"]


@pytest.mark.parametrize("dsn", [None, ""])
def test_without_a_dsn_nothing_happens(ingest: Ingest, dsn: str | None) -> None:
    out = run("caught", dsn)
    assert out.stdout.startswith("False"), out.stderr
    assert out.returncode == 0
    assert ingest.bodies == []


def test_a_dead_sentry_neither_breaks_nor_delays_the_process() -> None:
    out = run("caught", "http://public@127.0.0.1:9/1")
    assert out.returncode == 0, out.stderr


def test_without_a_dsn_the_sdk_is_not_imported() -> None:
    code = (
        "import sys; from shared.settings import Settings; from shared.telemetry import sentry\n"
        "assert sentry.init(Settings(), 'api') is False; assert 'sentry_sdk' not in sys.modules"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("SENTRY")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env, timeout=60)
