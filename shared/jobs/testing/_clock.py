"""A clock that stands still until it is moved on."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

__all__ = ["ManualClock"]


class ManualClock:
    """Call it for the time, which passes by ``move_on`` only. Begins now, unless told otherwise. Thread-safe."""

    def __init__(self, start: datetime | None = None) -> None:
        """Raises ValueError for a start without a time zone."""
        if start is not None and start.tzinfo is None:
            raise ValueError("start must carry a time zone")
        self._now = start or datetime.now(UTC)
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            return self._now

    def move_on(self, by: float | timedelta) -> None:
        """Let seconds, or a timedelta, pass. Raises ValueError for a step back."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta():
            raise ValueError("time does not go back")
        with self._lock:
            self._now += step
