"""A job being run, as its handler sees it: on the real pool, its end committed as the broker commits it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection

from shared.db import SyncPool
from shared.jobs import Done, JobCancelled, JobInfo


class RunningJob:
    """A JobContext. ``cancel`` may be called from another thread."""

    def __init__(self, pool: SyncPool, org_id: UUID, type: str, attempt: int = 1) -> None:
        self.job = JobInfo(uuid4(), org_id, type, attempt, attempt - 1, None, datetime.now(UTC), None)
        self.steps: list[tuple[int, str]] = []
        self.interruptible = threading.Event()
        self._pool = pool
        self._cancelled = False
        self._stop: Callable[[], None] | None = None

    def progress(self, percent: int, step: str) -> None:
        self.check()
        self.steps.append((percent, step))

    def log(self, message: str, **fields: Any) -> None:
        assert all(isinstance(v, int | float) for v in fields.values()), "ids, sizes and timings only"

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        with self._pool.connection() as conn:
            yield conn

    @contextmanager
    def on_interrupt(self, stop: Callable[[], None]) -> Iterator[None]:
        self._stop = stop
        self.interruptible.set()
        yield
        self._stop = None

    def check(self) -> None:
        if self._cancelled:
            raise JobCancelled

    def cancel(self) -> None:
        self._cancelled = True
        assert self._stop is not None
        self._stop()

    def finish(self, done: Done[Any], *, crash: bool = False) -> None:
        """Commit the effects in one transaction. ``crash``: the worker dies just before the commit."""
        with self._pool.connection() as conn, conn.transaction(force_rollback=crash):
            for effect in done.effects:
                effect(conn)
