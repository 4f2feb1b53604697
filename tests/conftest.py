"""Real servers for the whole suite: one PostgreSQL and one Valkey, a fresh database a test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
from pydantic import SecretStr

from deploy.local.servers import EmbeddedServers, embedded_servers
from shared.db import SyncPool, open_pool
from shared.db.migrate import migrate
from shared.settings import Settings

_TEMPLATE = "gradeline_template"


def _named(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """The suite's servers. A test that stops one must start it again."""
    with embedded_servers(tmp_path_factory.mktemp("servers")) as both:
        with psycopg.connect(both.database_url, autocommit=True) as conn:
            conn.execute(f"create database {_TEMPLATE}")
        migrate(_named(both.database_url, _TEMPLATE))
        yield both


@pytest.fixture
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    """A database of this test's own, with the newest schema."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"create database {name} template {_TEMPLATE}")
    yield _named(servers.database_url, name)
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """The suite's Valkey, emptied."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    return servers.redis_url


@pytest.fixture
def pool(database_url: str) -> Iterator[SyncPool]:
    pool = open_pool(database_url, size=8, application_name="test")
    yield pool
    pool.close()


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings with short times, for tests that wait for leases."""
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        secret_key=SecretStr("a-secret-key-for-tests-only-0123456789"),
        storage_dir=tmp_path / "storage",
        webhook_allow_networks="127.0.0.0/8",
        lease_seconds=2.0,
        worker_start_rate=0,
        heartbeat_seconds=0.2,
        shutdown_grace_seconds=1.0,
    )


@pytest.fixture
def org_id(pool: SyncPool) -> UUID:
    """An organisation to own things."""
    id = uuid4()
    with pool.connection() as conn:
        conn.execute("insert into organisations (id, name) values (%s, 'Test School')", (id,))
    return id


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Call until the answer is truthy; fails after ``within`` seconds."""

    def wait(probe: Callable[[], Any], within: float = 10.0) -> Any:
        deadline = time.monotonic() + within
        while True:
            answer = probe()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"still {answer!r} after {within} s"
            time.sleep(0.02)

    return wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake shows before the real services start."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
