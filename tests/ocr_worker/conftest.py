from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.ocr_worker.engine import ReaderPool


@pytest.fixture(scope="session")
def reader_pool() -> Iterator[ReaderPool]:
    """Two reading processes for all tests that do not break them for good."""
    with ReaderPool(2, 3 * 1024**3) as pool:
        yield pool
