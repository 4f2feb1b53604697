"""The store under test: each test of the contract runs on both."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from contract_harness import Harness, MemoryHarness, PostgresHarness

from deploy.local.servers import EmbeddedServers
from shared.db import SyncPool, open_pool
from shared.db.migrate import migrate


@pytest.fixture(scope="module")
def contract_pool(servers: EmbeddedServers) -> Iterator[SyncPool]:
    """One database for a module's tests, emptied before each: a database a test would take most of the suite's time."""
    name = f"contract_{uuid4().hex}"
    url = urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"create database {name}")
    migrate(url)
    pool = open_pool(url, size=8, application_name="test")
    yield pool
    pool.close()
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture(params=["memory", "postgres"])
def h(request: pytest.FixtureRequest) -> Harness:
    if request.param == "memory":
        harness: Harness = MemoryHarness()
    else:
        # The servers are started only where they are asked for.
        harness = PostgresHarness(request.getfixturevalue("contract_pool"))
        harness.clear()
    harness.request = request
    return harness
