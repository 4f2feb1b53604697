"""Retention: deletes what has been kept long enough. Any number of replicas may run it."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from services.scheduler.files import FilePruner
from shared.db import SyncPool
from shared.jobs import retention
from shared.jobs.retention import CHUNK, Keep
from shared.settings import Settings
from shared.storage import Storage

__all__ = ["Pruner"]

_log = structlog.get_logger(__name__)
# A round ends after this, wherever it is; what is left is the next one's.
_ROUND_SECONDS = 10.0
_JOBS_SHARE = 0.6  # of it, at most, for jobs: neither they nor files starve the other
# Tables without an index by age, in which little is ever due, are looked through this seldom.
_SELDOM_SECONDS = 600.0


class Pruner:
    """One a process: it remembers when it last looked through what is looked at seldom."""

    def __init__(
        self, pool: SyncPool, storage: Storage, settings: Settings, *, round_seconds: float = _ROUND_SECONDS
    ) -> None:
        self._pool = pool
        self._files = FilePruner(storage, settings)
        self._keep = Keep(settings.retention_hours, settings.dead_letter_hours, settings.retention_count)
        self._round_seconds = round_seconds
        self._seldom_at: float | None = None

    def prune(self) -> dict[str, int]:
        """One round, bounded in time: how many went, by what they were. Each chunk commits by itself.

        Raises what storage and database raise; what went before stays gone.
        """
        began = time.monotonic()
        counts: dict[str, int] = {}
        try:
            self._jobs(counts, began + _JOBS_SHARE * self._round_seconds)
            with self._pool.connection() as conn:
                files = self._files.prune(conn, began + self._round_seconds)
            counts |= {"documents": files.documents, "strays": files.strays}
        finally:
            went = {name: n for name, n in counts.items() if n}
            if went:
                _log.info("prune.done", seconds=round(time.monotonic() - began, 2), **went)
        return counts

    def _jobs(self, counts: dict[str, int], until: float) -> None:
        keep = self._keep
        duties: dict[str, Callable[[], int]] = {}
        with self._pool.connection() as conn:
            duties["jobs"] = lambda: retention.prune_jobs(conn, keep)
            duties["jobs_beyond_count"] = lambda: retention.prune_jobs_beyond_count(conn, keep)
            duties["batches"] = lambda: retention.prune_batches(conn, keep)
            if self._seldom_at is None or time.monotonic() - self._seldom_at > _SELDOM_SECONDS:
                self._seldom_at = time.monotonic()
                duties["idempotency_keys"] = lambda: retention.prune_idempotency_keys(conn, keep)
                duties["workers"] = lambda: retention.prune_workers(conn)
                duties["start_buckets"] = lambda: retention.prune_start_buckets(conn)
            for name, duty in duties.items():
                counts[name] = went = duty()
                # A job's chunk may be short and not the last: its children could not go before it.
                while went and (went == CHUNK or name.startswith("jobs")) and time.monotonic() < until:
                    went = duty()
                    counts[name] += went
