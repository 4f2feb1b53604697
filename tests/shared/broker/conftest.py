from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shared.broker import runner
from shared.db import SyncPool

sys.path.insert(0, str(Path(__file__).parent))
from broker_harness import Client, Stage


@pytest.fixture(autouse=True)
def _quick_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_IDLE_MILLISECONDS", 100)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def client(pool: SyncPool, redis_url: str, org_id: UUID) -> Iterator[Client]:
    client = Client(pool, redis_url, org_id)
    yield client
    client.close()
