"""The gateway as a process tree of its own, and people with keys to call it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2

from services.api.auth import ALL_SCOPES
from services.api.keys import new_key
from shared import ids
from shared.db import SyncPool
from shared.ids import IdKind
from shared.jobs import ClaimedJob, Outcome, store

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "samples"
V1 = "/api/v1"
# Bytes that begin as a PDF and a picture do; the gateway looks no further.
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n"
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256))


class Gateway:
    """``python -m services.api`` on a free port, ready when made. Stopped by its process group, which is its own."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.storage = Path(env["STORAGE_DIR"])
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.api"],
                cwd=REPOSITORY,
                env={"PATH": os.environ["PATH"], "TMPDIR": str(log.parent), "PORT": str(self.port), **env},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx2.get(f"{self.base_url}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """At once; how an orderly end goes is tested by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def files(self) -> list[Path]:
        """What lies in its storage, and in its spool."""
        return [p for p in self.storage.rglob("*") if p.is_file()]


@dataclass(frozen=True)
class Person:
    """A member with a key. ``http`` calls as that member."""

    org_id: UUID
    member_id: UUID
    key: str
    http: httpx2.Client


class School:
    """An organisation of a test, and its people."""

    def __init__(self, base_url: str, pool: SyncPool) -> None:
        self._base_url = base_url
        self._pool = pool
        self._clients: list[httpx2.Client] = []
        self.id = uuid4()
        with pool.connection() as conn:
            conn.execute("insert into organisations (id, name) values (%s, 'School')", (self.id,))

    def person(self, role: str = "member", scopes: Sequence[str] = ALL_SCOPES, **columns: Any) -> Person:
        """``columns`` are of the key's row: ``expires_at``, ``revoked_at``."""
        member = ids.new_uuid()
        with self._pool.connection() as conn:
            conn.execute(
                "insert into members (id, org_id, email, name, role) values (%s, %s, %s, 'A Person', %s)",
                (member, self.id, f"{member}@school.example", role),
            )
        key = self.key(member, scopes, **columns)
        return Person(self.id, member, key, self.client(key))

    def key(self, member: UUID, scopes: Sequence[str] = ALL_SCOPES, **columns: Any) -> str:
        key = new_key(ids.new_uuid())
        row = {"id": key.id, "org_id": self.id, "member_id": member, "hash": key.hash, "scopes": list(scopes)}
        row |= {"name": "test", **columns}
        with self._pool.connection() as conn:
            conn.execute(
                f"insert into api_keys ({', '.join(row)}) values ({', '.join(f'%({c})s' for c in row)})",
                row,
            )
        return key.text

    def client(self, key: str | None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        client = httpx2.Client(base_url=self._base_url, headers=headers, timeout=15)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


def problem(answer: httpx2.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The answer as the problem document it must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["code"] == code, body
    assert body.get("param") == param, body
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    # A sentence: for people, without the words of Python or Pydantic.
    assert body["detail"].endswith((".", "?", ")")), body
    assert len(body["detail"]) > 15, body
    for word in ("Traceback", "Error", "None", "Input should", "Value error", "Tuple", "pydantic"):
        assert word not in body["detail"], body
    return body


def a_standard(name: str = "Quiz") -> dict[str, Any]:
    questions = [
        {"id": "1", "kind": "single_choice", "options": {"A": "one", "B": "two"}, "answer": "A", "points": 2},
        {"id": "2", "kind": "numeric", "answer": 9.81, "tolerance": {"relative": 0.01}, "unit": "m/s^2"},
    ]
    return {"name": name, "key": {"questions": questions}}


def sample_standard() -> dict[str, Any]:
    standard: dict[str, Any] = json.loads((SAMPLES / "quiz" / "standard.json").read_text())
    return standard


def uuid_of(kind: IdKind, public: str) -> UUID:
    return ids.decode(kind, public)


def upload(who: Person, *files: tuple[str, bytes, str], headers: Mapping[str, str] | None = None, **fields: str) -> Any:
    """POST /uploads; a plain PDF where no file is given."""
    parts = [("files", f) for f in files or (("work.pdf", PDF, "application/pdf"),)]
    return who.http.post(f"{V1}/uploads", files=parts, data=fields, headers=headers)


def accepted(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


def claim(db: SyncPool, job_id: str) -> ClaimedJob:
    """Claim this very job, as a worker that has no other."""
    id = uuid_of(IdKind.JOB, job_id)
    with db.connection() as conn:
        conn.execute("update jobs set queue = %s where id = %s", (f"only-{id}", id))
        [job] = store.claim(conn, queue=f"only-{id}", worker_id=ids.new_uuid(), lease_seconds=600)
    return job


def settle(db: SyncPool, outcome: Outcome) -> None:
    with db.connection() as conn, conn.transaction():
        assert store.settle(conn, uuid4(), [outcome]).ids


def progress(db: SyncPool, job: ClaimedJob, percent: int, step: str) -> None:
    with db.connection() as conn:
        assert store.progress(conn, job.id, job.attempt, uuid4(), percent, step)
