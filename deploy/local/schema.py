"""Remembering which schema the database was brought to last."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.local.private_file import read_json, write_json
from deploy.local.services import REPOSITORY

__all__ = ["SchemaMemory"]


class SchemaMemory:
    """Whether the migrations as they are now were completed before on this very database, as noted in ``path``."""

    def __init__(self, path: Path, database_url: str, sources: Path = REPOSITORY / "shared" / "db") -> None:
        self._path = path
        digest = hashlib.sha256(database_url.encode())
        for file in sorted(sources.rglob("*")):
            if file.suffix in (".py", ".sql", ".ini"):
                digest.update(str(file).encode() + b"\0" + file.read_bytes())
        self._now = {"schema": digest.hexdigest()}

    def is_current(self) -> bool:
        try:
            return read_json(self._path) == self._now
        except ValueError:
            return False

    def note(self) -> None:
        """To be called when the migrations have succeeded."""
        write_json(self._path, self._now)
