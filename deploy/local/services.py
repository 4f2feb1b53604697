"""The services of the stack: one line each in a table, and how to start and probe one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deploy.local.child import Child, Launch
from deploy.local.ports import LOOPBACK

__all__ = ["SERVICES", "Service", "ServiceProcess", "Task", "answers_healthy", "module"]

REPOSITORY = Path(__file__).resolve().parents[2]


def module(name: str) -> tuple[str, ...]:
    """The command that runs a Python module with this interpreter."""
    return (sys.executable, "-m", name)


@dataclass(frozen=True, slots=True)
class Service:
    """One row: answers 200 to ``GET /healthz`` on the port it is given in the variable ``port_in``."""

    name: str
    command: tuple[str, ...]
    port_in: str = "HEALTH_PORT"  # "PORT" for the gateway, which answers on its public port


SERVICES: tuple[Service, ...] = (
    Service("api", module("services.api"), port_in="PORT"),
    Service("ocr_worker", module("services.ocr_worker")),
    Service("grading_worker", module("services.grading_worker")),
    Service("notifier", module("services.notifier")),
    Service("scheduler", module("services.scheduler")),
)


class ServiceProcess(Child):
    """A service as a child of the stack. SIGTERM drains it, within 30 s (the services' own grace is 25 s)."""

    def __init__(self, service: Service, port: int, env: Mapping[str, str], log: Path) -> None:
        super().__init__(service.name, log, grace=30.0)
        self.port = port
        self._service = service
        self._env = env

    def describe(self) -> Launch:
        return Launch(self._service.command, {**self._env, self._service.port_in: str(self.port)}, REPOSITORY)

    def ready(self) -> bool:
        return self.running and answers_healthy(self.port)


class Task(Child):
    """A command that runs once, such as the migrations.

    With ``secret`` its standard output (64 kB at most) goes to ``printed`` and not to the log.
    """

    def __init__(
        self, name: str, command: tuple[str, ...], env: Mapping[str, str], log: Path, *, secret: bool = False
    ) -> None:
        super().__init__(name, log, grace=5.0)
        self._command = command
        self._env = env
        self._secret = secret

    def describe(self) -> Launch:
        return Launch(self._command, self._env, REPOSITORY)

    def ready(self) -> bool:
        """Whether it has ended well."""
        return self.exit_status == 0

    @property
    def printed(self) -> str:
        """What a secret task has printed. Only after its end, and once."""
        if self._process is None or self._process.stdout is None:
            return ""
        with self._process.stdout as pipe:
            return pipe.read().decode()

    def _stdout(self, log: BinaryIO) -> BinaryIO | int:
        return subprocess.PIPE if self._secret else log


def answers_healthy(port: int, timeout: float = 0.8) -> bool:
    """Whether ``GET /healthz`` on 127.0.0.1 answers 200 in time. By hand: http.client alone weighs 4 MB here."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout) as connection:
            connection.sendall(
                f"GET /healthz HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b""
            while len(answer) < 12 and (part := connection.recv(64)):
                answer += part
    except OSError:
        return False
    return answer[:5] == b"HTTP/" and answer[8:12] == b" 200"
