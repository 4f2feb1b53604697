"""Start the local stack from a program (the demo, the end-to-end tests, the benchmarks) and wait until it is well."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["StackFailed", "free_port", "healthy", "launched"]

_ROOT = Path(__file__).resolve().parents[2]


class StackFailed(Exception):
    """The stack did not start; the text ends with its log's last lines."""


@contextmanager
def launched(data: Path, *, log: Path, within: float = 120, **environment: str) -> Iterator[dict[str, Any]]:
    """The stack on ``data`` while the block runs: the content of its stack.json, once every service is ready.

    ``environment`` is added to this process's own. Raises StackFailed after ``within`` seconds, or when it exits.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", "run"],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment, "DATA": str(data.absolute())},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + within
        while (stack := healthy(data / "stack.json")) is None or stack.get("pid") != process.pid:
            if process.poll() is not None:
                raise StackFailed(f"the stack did not start:\n{_tail(log)}")
            if time.monotonic() > deadline:
                raise StackFailed(f"the stack was not ready within {within:g} s:\n{_tail(log)}")
            time.sleep(0.1)
        yield stack
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(path: Path) -> dict[str, Any] | None:
    """The stack that the stack.json at ``path`` describes, if every service of it says that it is ready."""
    try:
        stack: dict[str, Any] = json.loads(path.read_text())
        ports = {name: service["health_port"] for name, service in stack["services"].items()}
        ports["api"] = int(stack["base_url"].rpartition(":")[2])
        return stack if all(_ready(port) for port in ports.values()) else None
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return None


def free_port(wanted: int = 0) -> int:
    """``wanted`` if it is free on loopback, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(s.getsockname()[1])
    raise OSError("no free port")


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
