"""Fixtures of the notifier's tests: rows in place of a database, and settings that allow the loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.notifier.subjects import Subject
from shared.contracts import EventType
from shared.settings import Settings
from shared.storage import LocalStorage
from tests.notifier.standins import Dependencies, Rows, job


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    found = Rows(job())

    def load_subject(conn: Any, org_id: UUID, event: EventType, subject_id: UUID) -> Subject | None:
        found.asked.append((org_id, event, subject_id))
        return found.subject

    for module in ("services.notifier.webhook.handler", "services.notifier.email.handler"):
        monkeypatch.setattr(f"{module}.load_subject", load_subject)
    monkeypatch.setattr("services.notifier.webhook.handler.load_secret_version", lambda conn, org_id: found.version)
    monkeypatch.setattr("services.notifier.email.handler.load_file_name", lambda conn, org_id, job_id: found.file_name)
    return found


@pytest.fixture
def make_deps(tmp_path: Path) -> Callable[..., Dependencies]:
    def make(**settings: Any) -> Dependencies:
        values: dict[str, Any] = {
            "secret_key": "k" * 40, "public_url": "https://grades.example", "webhook_allow_networks": "127.0.0.0/8",
        }  # fmt: skip
        return Dependencies(Settings(**{**values, **settings}), LocalStorage(tmp_path))

    return make
