from __future__ import annotations

from uuid import UUID

import pytest

from shared.db import SyncPool
from tests.grading_worker.rows import Rows


@pytest.fixture
def rows(pool: SyncPool, org_id: UUID) -> Rows:
    return Rows(pool, org_id)
