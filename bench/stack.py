"""A local stack of its own for a benchmark: fresh data, real services, stopped and removed at the end."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.local.launch import free_port, launched

__all__ = [
    "ROOT",
    "Multipart",
    "cpu_seconds",
    "free_port",
    "get",
    "local_stack",
    "post",
    "proportional_set_size",
    "tree",
]

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def local_stack(**environment: str) -> Iterator[dict[str, Any]]:
    """The content of stack.json, once every service is ready."""
    with tempfile.TemporaryDirectory(prefix="gradeline-bench-", dir="/var/tmp") as folder:
        data = Path(folder)
        data.chmod(0o755)
        with launched(data, log=data / "stack.log", PORT=str(free_port()), **environment) as stack:
            yield stack


def _connection(stack: dict[str, Any]) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(stack["base_url"].removeprefix("http://"), timeout=60)


def get(stack: dict[str, Any], path: str) -> tuple[int, Any]:
    connection = _connection(stack)
    connection.request("GET", path, headers={"Authorization": f"Bearer {stack['api_key']}"})
    response = connection.getresponse()
    body = json.loads(response.read() or b"null")
    connection.close()
    return response.status, body


def post(stack: dict[str, Any], path: str, body: bytes, content_type: str, client: Any = None) -> tuple[int, Any]:
    """POST on ``client`` (kept alive) or on a connection of its own."""
    connection = client or _connection(stack)
    headers = {"Authorization": f"Bearer {stack['api_key']}", "Content-Type": content_type}
    connection.request("POST", path, body=body, headers=headers)
    response = connection.getresponse()
    answer = json.loads(response.read() or b"null")
    if client is None:
        connection.close()
    return response.status, answer


class Multipart:
    """A form encoded once, so that a benchmark's client costs next to nothing."""

    def __init__(self, files: list[tuple[str, bytes, str]], **fields: str) -> None:
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode()
            for n, v in fields.items()
        ]
        for name, content, media_type in files:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            parts.append(f"{head}Content-Type: {media_type}\r\n\r\n".encode() + content + b"\r\n")
        self.body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"


def tree(pid: int) -> list[int]:
    """A process and all below it (Linux)."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and all below it, those that have ended included (Linux)."""
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional_set_size(pid: int) -> int:
    """Bytes: memory that is shared is divided among its sharers (Linux)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
