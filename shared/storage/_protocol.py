"""The seam between Gradeline and where its files lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

__all__ = ["ObjectStat", "Storage"]


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """``size`` in bytes; ``modified_at`` aware, in UTC."""

    key: str
    size: int
    modified_at: datetime


class Storage(Protocol):
    """Synchronous and safe to share between threads. Every method may raise InvalidKey and StorageUnavailable."""

    def put_file(self, key: str, path: Path, media_type: str, *, consume: bool = False) -> None:
        """Store the file at ``path`` under ``key``, replacing what lay there, whole or not at all.

        ``consume=False`` leaves ``path`` untouched (the bytes are copied). ``consume=True`` hands the file over:
        on success it is gone from ``path`` (a folder renames it where it can, which costs no copy); on failure it
        is still there. On return the bytes are durable. ``media_type`` is kept by stores that have a place for it;
        the truth about it is the document's row.
        """

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        """As ``put_file``, from memory."""

    def open_local(self, key: str) -> AbstractContextManager[Path]:
        """A path to read the object at, while the block runs. Never write to it: it may be the object itself.

        Raises ObjectMissing; ObjectCorrupt where the store keeps checksums.
        """

    def read(self, key: str, limit: int) -> bytes:
        """The whole object. Raises ObjectMissing, ObjectCorrupt, and ObjectTooLarge beyond ``limit`` bytes."""

    def stat(self, key: str) -> ObjectStat:
        """Raises ObjectMissing."""

    def exists(self, key: str) -> bool:
        """Is an object there? Unavailability is an error, never False."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete them all; an absent one is as good as deleted. All keys are checked before any is deleted."""

    def walk(self, folder: str) -> Iterator[ObjectStat]:
        """Every object whose key begins with ``folder`` and a slash. What is written or deleted meanwhile may be
        missed."""
