"""Files that only their owner may read, written so that a crash leaves the old content or the new, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_json", "write_json", "write_private"]


def write_private(path: Path, text: str) -> None:
    """Replaces ``path`` atomically with ``text``, mode 0600, flushed to disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    write_private(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """The object stored in ``path``; empty when there is no such file. Raises ValueError when it is not an object."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content
