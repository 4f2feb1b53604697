"""One gateway a test module, with a database and a storage folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest

from deploy.local.servers import EmbeddedServers
from shared.db import SyncPool, open_pool
from tests.api.gateway import Gateway, Person, School

# They wait for deadlines and for servers to come back.
_LAST = ("test_keys", "test_slow_clients", "test_outages", "test_events")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The gateway's quick modules first. Other folders' tests keep their places."""
    places = [n for n, item in enumerate(items) if item.path.parent == Path(__file__).parent]

    def lateness(item: pytest.Item) -> tuple[bool, int]:
        return item.get_closest_marker("slow") is not None, _LAST.index(
            item.path.stem
        ) if item.path.stem in _LAST else -1

    for n, item in zip(places, sorted((items[n] for n in places), key=lateness), strict=True):
        items[n] = item


@pytest.fixture(scope="module")
def module_database_url(servers: EmbeddedServers) -> Iterator[str]:
    name = f"api_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"create database {name} template gradeline_template")
    yield urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def environment(
    servers: EmbeddedServers, module_database_url: str, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> dict[str, str]:
    """The gateway's environment; a module's ``ENVIRONMENT`` adds to it."""
    return {
        "DATABASE_URL": module_database_url,
        "REDIS_URL": servers.redis_url,
        "SECRET_KEY": "a-secret-key-for-tests-only-0123456789",
        "STORAGE_DIR": str(tmp_path_factory.mktemp("gateway") / "storage"),
        "API_WORKERS": "2",
        **getattr(request.module, "ENVIRONMENT", {}),
    }


@pytest.fixture(scope="module")
def gateway(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(environment, tmp_path_factory.mktemp("log") / "gateway.log")
    yield gateway
    gateway.stop()
    assert "request.failed" not in gateway.log.read_text(), "the gateway had an error that nobody foresaw"


@pytest.fixture(scope="module")
def db(module_database_url: str) -> Iterator[SyncPool]:
    """The gateway's database."""
    # Checked, since some tests restart PostgreSQL.
    pool = open_pool(module_database_url, size=4, application_name="test")
    pool._check = SyncPool.check_connection
    yield pool
    pool.close()


@pytest.fixture
def school(gateway: Gateway, db: SyncPool) -> Iterator[School]:
    school = School(gateway.base_url, db)
    yield school
    school.close()


@pytest.fixture
def other_school(gateway: Gateway, db: SyncPool) -> Iterator[School]:
    school = School(gateway.base_url, db)
    yield school
    school.close()


@pytest.fixture
def teacher(school: School) -> Person:
    return school.person()


@pytest.fixture
def stranger(other_school: School) -> Person:
    """Of another organisation, with every scope."""
    return other_school.person()
