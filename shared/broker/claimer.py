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
# Jobs are claimed ahead for this many seconds of the process's work, so that a claim is worth its round trip.
# Jobs that take longer than that are never claimed ahead of a free thread.
LOOKAHEAD_SECONDS = 0.02
# A process of one interpreter ends no more jobs a second than one in this many seconds, however short they are.
_FLOOR_SECONDS = 0.0002
_MOST_AHEAD = 100
# What was claimed ahead and is not taken up by then is given back: the jobs before it are longer than those before
# them, and another process may be free.
_LATE_SECONDS = 0.5
# No more is claimed while so many ends wait to be written: Postgres, or a lock in it, is what holds things up.
_MOST_UNWRITTEN = 1000
# After Postgres refused a claim.
_RETRY_SECONDS = 1.0
# A process makes room for a job that runs alone for this many reservations in a row.
_RESERVATIONS = 5


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
        give_back: Callable[[Sequence[Run]], None],
    ) -> None:
        """``start_rate``: job starts a second, as many at once after a rest; 0 is no limit. ``give_back`` ends runs
        that were withdrawn."""
        self._worker = worker
        self._pool = pool
        self._runs = runs
        self._lease_seconds = lease_seconds
        self._rate = start_rate
        self._tokens = max(1.0, start_rate)
        self._filled_at = time.monotonic()
        self._make_run = make_run
        self._give_back = give_back
        self._not_before = 0.0  # monotonic: a claim failed
        self._look_at: float | None = None  # when a start limit allows the next start
        self._making_room_until = 0.0  # for a job that runs alone
        self._reservations = 0  # in a row
        self._reserve_at = 0.0  # monotonic: make no room before
        self._tend_at = 0.0
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
        if self._runs.alone or self._is_making_room(now) or self._runs.unwritten > _MOST_UNWRITTEN:
            return 0
        ahead = self._ahead()
        # Refill when half of what is ahead is left, so that a claim is worth its round trip.
        self._runs.refill_at = max(self._worker.concurrency - 1, self._worker.concurrency + ahead // 2 - 1)
        open_runs = self._runs.open  # only now: a run that ends from here on compares with what was just written
        if open_runs > self._runs.refill_at:
            return 0
        room = self._worker.concurrency + ahead - open_runs
        return min(room, int(self._take_stock(now))) if self._rate else room

    def urgent_room(self) -> int:
        """How many jobs to claim beyond ``room``, when one of high priority has come: it goes before those that are
        here, which are short. 0 where nothing is claimed ahead: a thread that comes free takes the best by itself."""
        now = time.monotonic()
        open_runs = self._runs.open
        if self._runs.alone or self._making_room_until > now or open_runs >= self._worker.concurrency + _MOST_AHEAD:
            return 0
        return int(self._ahead() > 0 and open_runs > 0 and (not self._rate or self._take_stock(now) >= 1))

    def pause_seconds(self, room: int) -> float | None:
        """Seconds until there is something to do, with this ``room``, without being woken; None when there is not."""
        now = time.monotonic()
        waits = []
        if self._making_room_until or self._runs.open > self._worker.concurrency:
            waits.append(max(0.0, self._tend_at - now))
        if self._rate and self._take_stock(now) < 1:
            waits.append((1 - self._tokens) / self._rate)
        if room and self._not_before > now:
            waits.append(self._not_before - now)
        elif room and self._look_at is not None:
            waits.append(max(0.0, self._look_at - now))
        return min(waits, default=None)

    def tend(self) -> None:
        """What is due now and then, room or none. Raises nothing, and is cheap to call."""
        now = time.monotonic()
        if now < self._tend_at:
            return
        self._tend_at = now + _LATE_SECONDS / 2
        self._give_back_late(now)
        if self._making_room_until <= now:
            self._making_room_until, self._reservations = 0.0, 0
        if self._making_room_until - now < store.RESERVE_SECONDS / 2 and self._is_making_room(now):
            try:
                with self._pool.connection() as conn:
                    self._reserve(conn)
            except Exception as e:
                _log.warning("claim.reserve_failed", queue=self._worker.queue, error=type(e).__name__)

    def _give_back_late(self, now: float) -> None:
        if self._runs.open <= self._worker.concurrency:
            return
        late = [r for r in self._runs.all() if not r.begun and now - r.started > _LATE_SECONDS and r.withdraw()]
        if late:
            _log.info("claim.late_given_back", queue=self._worker.queue, jobs=len(late))
            # Nothing is claimed ahead again until enough short ones have ended.
            self._runs.mean_seconds = max(self._runs.mean_seconds or 0.0, _LATE_SECONDS)
            self._give_back(late)

    def _is_making_room(self, now: float) -> bool:
        return self._making_room_until > now and bool(self._runs.all())

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
        self._hungry = self._hungry or self._runs.alone or self._making_room_until > asked_at
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
            self._making_room_until, self._reservations = 0.0, 0
            if claims := self._store_claim(conn, 1, alone=True):
                return claims
            # None may start, by its limits: making room for the next would be as vain.
            self._reserve_at = time.monotonic() + store.RESERVE_SECONDS
        claims = self._store_claim(conn, room)
        if not claims.alone:
            return claims
        if not claims and not self._runs.all():
            return self._store_claim(conn, 1, alone=True)
        if time.monotonic() >= self._reserve_at:
            try:
                self._reserve(conn)
            except psycopg.Error as e:  # what was claimed is claimed
                _log.warning("claim.reserve_failed", queue=self._worker.queue, error=type(e).__name__)
        return claims

    def _reserve(self, conn: store.Connection) -> None:
        """Make room, or go on making it, for a job that runs alone: for as long as there is one, but not for ever."""
        queue, types = self._worker.queue, self._worker.job_types
        now = time.monotonic()
        if self._reservations >= _RESERVATIONS:
            self._making_room_until, self._reservations = 0.0, 0
            self._reserve_at = now + store.RESERVE_SECONDS  # somebody else may
        elif store.reserve(conn, queue=queue, worker_id=self._worker.id, types=types):
            self._making_room_until = now + store.RESERVE_SECONDS
            self._reservations += 1
        else:
            self._making_room_until, self._reservations = 0.0, 0

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
