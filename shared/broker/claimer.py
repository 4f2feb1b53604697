"""How many jobs a process takes, and when: as many as it has threads, and what those will do in the next moment.

Used by the consumer's thread alone, but for ``RunRegistry``, whose ``freed`` event worker threads set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from shared.db import SyncPool
from shared.jobs import ClaimedJob, store
from shared.jobs.store import Claims, WorkerIdentity
from shared.telemetry import metrics, sentry

from .run import Run, RunRegistry

__all__ = ["Claimer"]

_log = structlog.get_logger(__name__)
# Jobs are claimed ahead for this many seconds of the process's work: what a high-priority job may find before it.
# Jobs that take longer than that are never claimed ahead of a free thread.
LOOKAHEAD_SECONDS = 0.008
# A process of one interpreter ends no more jobs a second than one in this many seconds, however short they are.
_FLOOR_SECONDS = 0.0002
_MOST_AHEAD = 100
# After Postgres refused a claim.
_RETRY_SECONDS = 1.0


class Claimer:
    """Claims for one process."""

    def __init__(
        self,
        *,
        worker: WorkerIdentity,
        pool: SyncPool,
        runs: RunRegistry,
        lease_seconds: float,
        start_rate: float,
        make_run: Callable[[ClaimedJob, float], Run],
    ) -> None:
        """``start_rate``: job starts a second, as many at once after a rest; 0 is no limit."""
        self._worker = worker
        self._pool = pool
        self._runs = runs
        self._lease_seconds = lease_seconds
        self._rate = start_rate
        self._tokens = max(1.0, start_rate)
        self._filled_at = time.monotonic()
        self._make_run = make_run
        self._not_before = 0.0  # monotonic: a claim failed
        self._look_at: float | None = None  # when a start limit allows the next start
        self._making_room_until = 0.0  # for a job that runs alone
        self._hungry = True
        self.limited = False
        self.freed = runs.freed

    def wake(self) -> None:
        """There may be work."""
        self._hungry = True

    @property
    def hungry(self) -> bool:
        """Is it worth asking?"""
        now = time.monotonic()
        return now >= self._not_before and (self._hungry or (self._look_at is not None and now >= self._look_at))

    def room(self) -> int:
        """How many jobs to claim now. 0 while there are enough, or while one runs alone or is about to."""
        now = time.monotonic()
        open_runs = self._runs.open
        if self._runs.alone or (self._making_room_until > now and self._runs.all()):
            return 0
        ahead = self._ahead()
        # Refill when half of what is ahead is left, so that a claim is worth its round trip.
        self._runs.refill_at = max(self._worker.concurrency - 1, self._worker.concurrency + ahead // 2 - 1)
        if open_runs > self._runs.refill_at:
            return 0
        room = self._worker.concurrency + ahead - open_runs
        return min(room, int(self._take_stock(now))) if self._rate else room

    def pause_seconds(self) -> float | None:
        """Seconds until there is something to do without being woken; None when there is not."""
        now = time.monotonic()
        waits = []
        if self._hungry and self._rate and self._take_stock(now) < 1:
            waits.append((1 - self._tokens) / self._rate)
        if self._not_before > now:
            waits.append(self._not_before - now)
        if self._look_at is not None:
            waits.append(max(0.0, self._look_at - now))
        return min(waits, default=None)

    def claim(self, room: int) -> list[Run]:
        """Claim at most ``room`` jobs, and register their runs. Raises nothing; what failed is tried again soon."""
        asked_at = time.monotonic()
        with self._runs.claiming() as admitted:
            if not admitted:
                return []
            try:
                claims = self._claim(room)
            except Exception as e:
                self._failed(e)
                return []
            runs = [self._make_run(job, asked_at) for job in claims]
            for run in runs:
                self._runs.add(run)
        self._tokens -= len(claims)
        self.limited = claims.limited
        # Fewer than asked for: all there is. Under limits it means that for now no more may start, or that the rest
        # of what was seen is held; more is found at once where some was.
        self._hungry = bool(claims) if claims.limited else len(claims) >= room
        self._hungry = self._hungry or self._runs.alone or self._making_room_until > 0
        self._look_at = None if claims.wait is None else time.monotonic() + claims.wait
        metrics.CLAIMS.labels(self._worker.queue, "claimed" if claims else "empty").inc()
        return runs

    def _claim(self, room: int) -> Claims:
        for tries_left in (1, 0):
            try:
                with self._pool.connection() as conn:
                    return self._best(conn, room)
            except psycopg.OperationalError as e:
                if not tries_left or isinstance(e, PoolTimeout):
                    raise
                # After a restart of Postgres each pooled connection is dead until it is tried: replace all of them.
                self._pool.check()
        raise AssertionError("unreachable")

    def _best(self, conn: store.Connection, room: int) -> Claims:
        if self._making_room_until > time.monotonic():  # and now there is room
            self._making_room_until = 0.0
            if claims := self._store_claim(conn, 1, alone=True):
                return claims
        claims = self._store_claim(conn, room)
        if not claims.alone:
            return claims
        types = self._worker.job_types
        if not claims and not self._runs.all():
            return self._store_claim(conn, 1, alone=True)
        if store.reserve(conn, queue=self._worker.queue, worker_id=self._worker.id, types=types):
            self._making_room_until = time.monotonic() + store.RESERVE_SECONDS
        return claims

    def _store_claim(self, conn: store.Connection, limit: int, *, alone: bool = False) -> Claims:
        types: Sequence[str] = self._worker.job_types
        return store.claim(
            conn,
            queue=self._worker.queue,
            worker_id=self._worker.id,
            lease_seconds=self._lease_seconds,
            limit=limit,
            types=types,
            alone=alone,
        )

    def _failed(self, e: Exception) -> None:
        metrics.CLAIMS.labels(self._worker.queue, "failed").inc()
        _log.warning("claim.failed", queue=self._worker.queue, error=type(e).__name__)
        if not isinstance(e, psycopg.OperationalError):  # a pool's time-outs are those too
            sentry.capture(e, queue=self._worker.queue)
        self._not_before = time.monotonic() + _RETRY_SECONDS
        self._hungry = True

    def _ahead(self) -> int:
        seconds = self._runs.mean_seconds
        if seconds is None:
            return 0
        each = max(seconds / self._worker.concurrency, _FLOOR_SECONDS)
        return min(_MOST_AHEAD, int(LOOKAHEAD_SECONDS / each))

    def _take_stock(self, now: float) -> float:
        """The start tokens there are by now."""
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return self._tokens
