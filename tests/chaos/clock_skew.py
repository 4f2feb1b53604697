"""A wrong wall clock for one process: applied before anything else is imported. The monotonic clock stays."""

from __future__ import annotations

import datetime as datetime_module
import time
from datetime import timedelta
from typing import Any

__all__ = ["apply_clock_skew"]

_RealDatetime = datetime_module.datetime


def apply_clock_skew(seconds: float) -> None:
    """From now on this process believes it is ``seconds`` later. Code that reads the clock in C sees the true time."""
    if not seconds:
        return
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_time_ns() + int(seconds * 1e9)
    shift = timedelta(seconds=seconds)

    class _Meta(type(_RealDatetime)):  # type: ignore[misc]
        # Datetimes made in C (by psycopg) are of the real class, and must pass for ours.
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, _RealDatetime)

    class SkewedDatetime(_RealDatetime, metaclass=_Meta):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return _RealDatetime.now(tz) + shift

        @classmethod
        def utcnow(cls) -> Any:
            return _RealDatetime.now(datetime_module.UTC).replace(tzinfo=None) + shift

    # psycopg registers its adapters by the class's full name.
    SkewedDatetime.__name__ = SkewedDatetime.__qualname__ = "datetime"
    SkewedDatetime.__module__ = "datetime"
    datetime_module.datetime = SkewedDatetime  # type: ignore[misc]
