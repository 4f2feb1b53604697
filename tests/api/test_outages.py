"""Probes, and what goes on while PostgreSQL or Valkey is away, and while the storage refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.local.servers import EmbeddedServers
from shared.db import SyncPool
from tests.api.gateway import V1, Gateway, Person, School, accepted, problem, upload


@contextmanager
def away(servers: EmbeddedServers, what: str) -> Iterator[None]:
    getattr(servers, f"stop_{what}")()
    try:
        yield
    finally:
        getattr(servers, f"start_{what}")()


@pytest.fixture(autouse=True)
def _ready_again(gateway: Gateway, school: School, eventually: Any) -> Iterator[None]:
    yield
    http = school.client(None)
    eventually(lambda: all(http.get("/readyz").status_code == 200 for _ in range(10)))


def test_the_probes(school: School, eventually: Any) -> None:
    http = school.client(None)
    assert http.get("/healthz").json() == {"status": "ok"}
    well = {"status": "ok", "checks": {"postgres": "ok", "redis": "ok"}}
    eventually(lambda: http.get("/readyz").json() == well)


def test_uploads_are_accepted_while_valkey_is_away(
    gateway: Gateway, teacher: Person, db: SyncPool, servers: EmbeddedServers, eventually: Any
) -> None:
    with away(servers, "valkey"):
        eventually(lambda: all(teacher.http.get("/readyz").json()["checks"]["redis"] == "away" for _ in range(10)))
        assert teacher.http.get("/readyz").status_code == 200
        began = time.monotonic()
        batch = accepted(upload(teacher))
        teacher.http.post(batch["jobs"][0]["links"]["cancel"])
        second = accepted(upload(teacher))
        # Nobody waits for Redis.
        assert time.monotonic() - began < 1
    with db.connection() as conn:
        rows = conn.execute(
            "select status from jobs where created_by = %s order by id", (teacher.member_id,)
        ).fetchall()
    assert [r["status"] for r in rows] == ["cancelled", "queued"]
    assert teacher.http.get(second["links"]["self"]).status_code == 200


def test_without_postgres_it_is_alive_but_not_ready(teacher: Person, servers: EmbeddedServers) -> None:
    assert teacher.http.get(f"{V1}/jobs").status_code == 200
    with away(servers, "postgres"):
        assert teacher.http.get("/healthz").status_code == 200
        began = time.monotonic()
        answer = teacher.http.get("/readyz")
        assert time.monotonic() - began < 3
        assert answer.status_code == 503
        assert answer.json()["status"] == "failing"
        assert answer.json()["checks"]["postgres"] != "ok"


def test_after_a_restart_of_postgres_few_requests_pay(teacher: Person, servers: EmbeddedServers) -> None:
    def get(_: int) -> int:
        return teacher.http.get(f"{V1}/jobs").status_code

    with ThreadPoolExecutor(16) as many:
        list(many.map(get, range(200)))  # so that the pools are full
        servers.restart_postgres()
        statuses = []
        for n in range(60):
            statuses.append(get(n))
            time.sleep(0.01)
    # One in each process, or two, not one for each of sixteen connections.
    assert statuses.count(503) <= 4, statuses
    assert statuses[-20:] == [200] * 20


def test_a_full_disk_is_a_503_and_leaves_no_rows(
    gateway: Gateway, teacher: Person, db: SyncPool, eventually: Callable[..., Any]
) -> None:
    documents = gateway.storage / "documents"
    # The process that answers may have to find out first that Postgres was restarted before.
    eventually(lambda: upload(teacher).status_code == 202)
    blocked = gateway.storage / "documents.away"
    documents.rename(blocked)
    documents.write_bytes(b"")  # a file where the folder should be
    try:
        problem(upload(teacher), 503, "service.unavailable")
    finally:
        documents.unlink()
        blocked.rename(documents)
    with db.connection() as conn:
        [row] = conn.execute(
            "select count(*) as n from documents where created_by = %s", (teacher.member_id,)
        ).fetchall()
    assert row["n"] == 1
    assert not list(gateway.storage.glob(".upload-*"))


@pytest.mark.slow
def test_without_postgres_an_upload_is_a_503_and_nothing_of_it_stays(
    gateway: Gateway, teacher: Person, servers: EmbeddedServers
) -> None:
    accepted(upload(teacher))
    before = gateway.files()
    with away(servers, "postgres"):
        answer = upload(teacher)
        problem(answer, 503, "service.unavailable")
        assert answer.headers["retry-after"]
        assert gateway.files() == before
