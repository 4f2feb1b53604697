from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shared.db import SyncPool

sys.path.insert(0, str(Path(__file__).parents[1] / "shared" / "broker"))
from broker_harness import Client, Stage


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def client(pool: SyncPool, redis_url: str, org_id: UUID) -> Iterator[Client]:
    client = Client(pool, redis_url, org_id)
    yield client
    client.close()
