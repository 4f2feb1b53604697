"""Fixtures of the local stack's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dummy_stack import DummyStack

from deploy.local.servers import EmbeddedServers, embedded_servers


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can reach. ``tmp_path`` is not: pytest closes its parent again at every start."""
    with tempfile.TemporaryDirectory(prefix="gradeline-test-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def stack(open_folder: Path) -> Iterator[DummyStack]:
    dummy = DummyStack(open_folder)
    yield dummy
    dummy.down()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    with embedded_servers(tmp_path_factory.mktemp("servers")) as both:
        yield both
