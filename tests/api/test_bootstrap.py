"""Development keys: the same at every start, safe against a torn file, and never for anything but development."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.api.bootstrap import bootstrap
from shared.db import SyncPool
from shared.settings import Settings


def test_a_second_start_finds_the_same_keys(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = bootstrap(settings, file)
    assert bootstrap(settings, file) == first
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.glob("keys*")] == ["keys.json"]


def test_a_torn_file_makes_new_keys_instead_of_stopping_the_stack(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = bootstrap(settings, file)
    file.write_text('{"api_key": "gl_')
    again = bootstrap(settings, file)
    assert again["api_key"] != first["api_key"]
    assert again["webhook_secret"] == first["webhook_secret"]


def test_a_revoked_key_stays_revoked(settings: Settings, tmp_path: Path, pool: SyncPool) -> None:
    bootstrap(settings, tmp_path / "keys.json")
    with pool.connection() as conn:
        conn.execute("update api_keys set revoked_at = now()")
    bootstrap(settings, tmp_path / "keys.json")
    with pool.connection() as conn:
        rows = conn.execute("select revoked_at from api_keys").fetchall()
    assert all(r["revoked_at"] is not None for r in rows)


def test_it_refuses_anything_but_a_local_environment(settings: Settings) -> None:
    with pytest.raises(SystemExit, match="ENVIRONMENT=local"):
        bootstrap(settings.model_copy(update={"environment": "production"}), None)
