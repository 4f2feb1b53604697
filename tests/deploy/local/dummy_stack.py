"""A stack of dummy services as a process of its own, and looking at processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.ports import choose_port

REPOSITORY = Path(__file__).resolve().parents[3]


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Other processes' doings send us no event: looks every 20 ms."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def running(pids: list[int]) -> list[int]:
    """Those of the pids that run (an orphan stays a zombie until init reaps it)."""
    alive = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            pass
    return alive


# Answers /healthz on whatever port it is given, starts a child of its own, and notes both pids.
_SERVICE = """
import http.server, os, subprocess, sys
name, folder = sys.argv[1:3]
child = subprocess.Popen(["sleep", "600"])
with open(f"{folder}/{name}.pids", "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *_): pass
port = int(os.environ.get("HEALTH_PORT") or os.environ["PORT"])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

_STACK = """
import os, sys
from pathlib import Path
from typing import Any
from deploy.local.configuration import Configuration
from deploy.local.services import Service
from deploy.local.stack import Commands, Stack

folder, python = sys.argv[1], sys.executable
def dummy(name): return (python, "-S", f"{folder}/service.py", name, folder)
keys = 'print(\\'{"api_key": "a", "admin_api_key": "b", "webhook_secret": "whsec_c"}\\')'
note = 'import os, pathlib; pathlib.Path(os.environ["BOOTSTRAP_FILE"]).write_text("{}"); '
stack = Stack(
    Configuration.read(os.environ),
    services=(Service("api", dummy("api"), port_in="PORT"), Service("worker", dummy("worker"))),
    commands=Commands(migrate=(python, "-c", "import os; assert os.environ['DATABASE_URL']"),
                      bootstrap=(python, "-c", note + keys)),
    say=lambda text: print(text, flush=True),
)
sys.exit(stack.run())
"""


class DummyStack:
    """A real stack (real servers, real supervisor) around two dummy services, as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "var"
        self.port = choose_port()
        self.process: subprocess.Popen[str] | None = None
        (folder / "service.py").write_text(_SERVICE)
        (folder / "stack.py").write_text(_STACK)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DATABASE_", "REDIS_", "SMTP_", "S3_"))}
        env |= {"PYTHONPATH": str(REPOSITORY), "PORT": str(self.port), "DATA": str(self.data), **environ}
        self.output = self.folder / f"output-{time.monotonic_ns()}.txt"
        with self.output.open("w") as output:
            return subprocess.Popen(
                [sys.executable, str(self.folder / "stack.py"), str(self.folder)],
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                start_new_session=True,
            )

    def up(self) -> float:
        """Starts it, waits for its stack file and gives the seconds that took."""
        begun = time.monotonic()
        process = self.process = self.start()

        def described() -> bool:  # a stack that was killed leaves its file until the next one has begun
            if process.poll() is not None:
                pytest.fail(self.output.read_text())
            try:
                return self.content()["pid"] == process.pid
            except FileNotFoundError:
                return False

        wait_for(described, 30)
        return time.monotonic() - begun

    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.data / "stack.json").read_text())
        return content

    def pids(self) -> list[int]:
        """Every process of the stack, grandchildren and the guard included."""
        assert self.process is not None
        return [self.process.pid, *(p.pid for p in psutil.Process(self.process.pid).children(recursive=True))]

    def down(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()  # the guard does the rest
                self.process.wait()
