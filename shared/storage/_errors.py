"""What can go wrong with stored objects. Texts carry keys, sizes and the store's error codes, never contents."""

from __future__ import annotations

__all__ = ["InvalidKey", "ObjectCorrupt", "ObjectMissing", "ObjectTooLarge", "StorageError", "StorageUnavailable"]


class StorageError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidKey(StorageError, ValueError):
    """The key is not one this package would ever make: absolute, climbing, too long or with odd characters."""


class ObjectMissing(StorageError):
    """No object lies under the key: never written, or deleted meanwhile. Trying again does not help."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object under {key}")
        self.key = key


class ObjectTooLarge(StorageError):
    """The object is larger than the caller's limit, and none of it was returned."""

    def __init__(self, key: str, limit: int) -> None:
        super().__init__(f"the object under {key} is larger than {limit} bytes")
        self.key = key
        self.limit = limit


class ObjectCorrupt(StorageError):
    """What came back is not what was stored: the checksum differs. Trying again may help if the wire did it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the object under {key} does not match its checksum")
        self.key = key


class StorageUnavailable(StorageError):
    """The store did not do it this time: unreachable, full, refusing, or misconfigured. Trying again may help."""
