"""Writing down how an attempt ended: once, under the fence, with its effects, whatever Postgres goes through."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from shared.db import SyncPool
from shared.jobs import JobCancelled, Moved, Outcome, Status, store
from shared.telemetry import sentry

from .publisher import Publisher
from .run import Run

__all__ = ["Settlement"]

_log = structlog.get_logger(__name__)
# A statement that Postgres gave up while the connection held (a deadlock, a time-out) is tried this often in all.
_TRIES = 5


class _Unreachable(Exception):
    """Postgres could not be reached, or was lost on the way: the write may or may not have happened."""


class Settlement:
    """Settles runs. ``settle`` blocks while Postgres is away, for as long as the run's lease may still hold."""

    def __init__(
        self,
        pool: SyncPool,
        worker_id: UUID,
        publisher: Publisher,
        judge: Callable[[Run, BaseException], Outcome],
    ) -> None:
        """``judge`` makes a failed attempt's outcome of an exception."""
        self._pool = pool
        self._judge = judge
        self._worker_id = worker_id
        self._publisher = publisher

    def settle(self, run: Run) -> str:
        """Write the run's outcome; how it ended, as metrics name it: an event kind, ``cancelled`` or ``lost``.

        What Postgres or an effect refuses makes the attempt fail, by the same rules as an exception of the handler's.
        """
        outcome = run.outcome
        if outcome is None:  # the job is not ours any more: nothing to write
            return "cancelled" if isinstance(run.exception, JobCancelled) else "lost"
        in_doubt = False
        tries = 0
        pause = 0.05
        while True:
            try:
                moved = self._write(run, outcome)
                break
            except (_Unreachable, psycopg.OperationalError) as e:
                away = isinstance(e, _Unreachable)
                in_doubt = in_doubt or away
                tries += not away
                if tries >= _TRIES:
                    outcome = run.outcome = self._refused(run, outcome, e)
                    tries = 0
                elif time.monotonic() + pause >= run.lease_deadline:
                    _log.warning("settle.given_up", error=type(e).__name__)
                    return "lost"
                else:
                    time.sleep(pause)
                    pause = min(1.0, pause * 2)
            except Exception as e:
                outcome = run.outcome = self._refused(run, outcome, e)
        if moved.jobs:
            self._publisher.moved(moved)
            return outcome.kind.value
        return self._fenced_off(run, outcome, in_doubt)

    def _write(self, run: Run, outcome: Outcome) -> Moved:
        effects = run.result.effects if run.result is not None and outcome.status is Status.COMPLETED else ()
        conn: psycopg.Connection[dict[str, object]] | None = None
        try:
            with self._pool.connection() as conn, conn.transaction():
                moved = store.settle(conn, self._worker_id, [outcome])
                if moved.jobs:
                    for effect in effects:
                        effect(conn)
                    if conn.info.transaction_status is TransactionStatus.INERROR:
                        # An effect swallowed an error of Postgres': COMMIT would quietly roll all of this back.
                        raise psycopg.errors.InFailedSqlTransaction("an effect left the transaction broken")
                return moved
        except PoolTimeout as e:
            raise _Unreachable from e
        except psycopg.Error as e:
            if conn is None or conn.closed:
                raise _Unreachable from e
            raise

    def _fenced_off(self, run: Run, outcome: Outcome, in_doubt: bool) -> str:
        """Why nothing moved: an earlier try of ours that did commit, a cancellation, or a lost lease."""
        try:
            with self._pool.connection() as conn:
                row = conn.execute("select status, attempt from jobs where id = %s", (run.claimed.id,)).fetchone()
        except psycopg.Error:
            return "lost"
        if row is None or row["attempt"] != run.claimed.attempt:
            return "lost"
        if row["status"] == Status.CANCELLED:
            return "cancelled"
        if in_doubt and row["status"] == outcome.status:
            # Wakes of what it set free were lost with the connection: the re-waker rings for those.
            self._publisher.look([run.claimed.id])
            return outcome.kind.value
        return "lost"

    def _refused(self, run: Run, outcome: Outcome, error: Exception) -> Outcome:
        """What to write instead: a completion becomes a failed attempt; a failure, plain words."""
        if outcome.status is Status.COMPLETED:
            return self._judge(run, error)
        sentry.capture(error, job_id=run.claimed.id, job_type=run.claimed.type, attempt=run.claimed.attempt)
        _log.error("settle.refused", error=type(error).__name__)
        if outcome.error is not None and outcome.error.get("code") == "job.unstorable":
            raise error  # not even these are taken: the lease will end it
        details = {"exception": type(error).__name__}
        plain = {"code": "job.unstorable", "message": "How this ended could not be stored.", "details": details}
        return Outcome.failed(run.claimed, plain)
