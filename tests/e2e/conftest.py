"""The whole stack, as `make run` starts it, once for all end-to-end tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.launch import free_port, launched
from tests.e2e.client import Client


@pytest.fixture(scope="session")
def stack() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="gradeline-e2e-", dir="/var/tmp") as folder:
        data = Path(folder)
        data.chmod(0o755)
        with launched(data, log=data / "stack.log", PORT=str(free_port()), LEASE_SECONDS="5") as running:
            yield {**running, "data": data}


@pytest.fixture
def client(stack: dict[str, Any]) -> Iterator[Client]:
    client = Client(stack)
    with client.http:
        yield client
