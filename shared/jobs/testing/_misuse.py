"""What the kit says to whoever wrote the test."""

from __future__ import annotations

__all__ = ["TestingKitMisuse"]


class TestingKitMisuse(Exception):
    """The test asked for what the kit cannot do. Never taken for a failure of the handler's, even if it caught it."""

    __test__ = False  # not a test class, whatever its name begins with
