"""Writing down how attempts ended: each once, under the fence, with its effects, whatever Postgres goes through."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from uuid import UUID

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from shared.db import SyncPool
from shared.jobs import JobCancelled, Moved, Outcome, Status, Wake, store
from shared.telemetry import metrics, sentry

from .publisher import Publisher
from .run import Run, RunRegistry

__all__ = ["Settlement"]

_log = structlog.get_logger(__name__)
# A statement that Postgres gave up while the connection held (a deadlock, a time-out) is tried this often in all.
_TRIES = 5
# Ends written by one statement at most.
_TOGETHER = 200


class _Unreachable(Exception):
    """Postgres could not be reached, or was lost on the way: the write may or may not have happened."""


class Settlement:
    """Settles runs. What nothing follows from is written together with what else ended meanwhile, by the thread that
    came first (flat combining: Hendler et al., SPAA 2010): no thread waits for another, and one job alone costs one
    round trip.
    """

    def __init__(
        self,
        pool: SyncPool,
        worker_id: UUID,
        publisher: Publisher,
        runs: RunRegistry,
        judge: Callable[[Run, BaseException], Outcome],
        is_limited: Callable[[], bool],
    ) -> None:
        """``judge`` makes a failed attempt's outcome of an exception. ``is_limited``: does the queue have limits, so
        that an end may let another process start something?"""
        self._pool = pool
        self._judge = judge
        self._worker_id = worker_id
        self._publisher = publisher
        self._runs = runs
        self._is_limited = is_limited
        self._lock = threading.Lock()
        self._pending: list[Run] = []
        self._writing = False

    def settle(self, *runs: Run) -> None:
        """Write the runs' outcomes, or leave them with the thread that is writing. Those from which something follows
        block while Postgres is away, for as long as their leases may still hold. Raises nothing."""
        plain = [r for r in runs if r.outcome is not None and not r.claimed.has_followers and not _effects(r)]
        with self._lock:
            self._pending += plain
            lead = bool(plain) and not self._writing
            self._writing = self._writing or lead
        if lead:
            self._lead()
        for run in runs:
            if run not in plain:
                self._settle_one(run)

    def _lead(self) -> None:
        while True:
            with self._lock:
                together, self._pending = self._pending[:_TOGETHER], self._pending[_TOGETHER:]
                if not together:
                    self._writing = False
                    return
            try:
                self._settle_together(together)
            except BaseException as e:  # whatever it is: this thread has the others' outcomes in its hands
                _log.error("settle.leader_failed", error=type(e).__name__)
                self._apart([(run, True) for run in together])

    def _apart(self, runs: list[tuple[Run, bool]]) -> None:
        """Settle runs (each with whether it is in doubt) one by one, in a thread of their own: one of them may have to
        wait, for a row or for Postgres, and the rest of the process's ends must not."""

        def one_by_one() -> None:
            for run, in_doubt in runs:
                self._settle_one(run, in_doubt=in_doubt)

        if runs:
            try:
                threading.Thread(target=one_by_one, name="settle-apart", daemon=True).start()
            except RuntimeError:  # there can be no more threads
                one_by_one()

    def _settle_together(self, runs: list[Run]) -> None:
        # In the order in which a cancel locks them, lest the two deadlock.
        runs = sorted(runs, key=lambda run: run.claimed.id)
        outcomes = [run.outcome for run in runs if run.outcome is not None]
        in_doubt = False
        moved = Moved()
        try:
            with self._pool.connection() as conn:
                moved = store.settle_plain(conn, self._worker_id, outcomes)
        except Exception as e:
            in_doubt = not isinstance(e, PoolTimeout)
            if not isinstance(e, psycopg.OperationalError):
                _log.warning("settle.one_by_one", error=type(e).__name__, jobs=len(runs))
        self._publish(moved)
        done = set(moved.ids)
        self._apart([(run, in_doubt) for run in runs if run.claimed.id not in done])
        for run in runs:
            if run.claimed.id in done and run.outcome is not None:
                self._ended(run, run.outcome.kind.value)

    def _settle_one(self, run: Run, *, in_doubt: bool = False) -> None:
        ended = "lost"
        try:
            ended = self._write_down(run, in_doubt)
        except BaseException as e:  # not even the plainest words are taken: the lease will end it
            _log.error("settle.failed", error=type(e).__name__)
        finally:
            self._ended(run, ended)

    def _ended(self, run: Run, ended: str) -> None:
        """``ended``: an event kind, ``cancelled`` or ``lost``. Raises nothing: what is written is written."""
        if not self._runs.remove(run, ended):
            return
        try:
            self._tell(run, ended)
        except Exception as e:
            with contextlib.suppress(Exception):
                _log.error("settle.untold", error=type(e).__name__)

    def _tell(self, run: Run, ended: str) -> None:
        job = run.claimed
        seconds = time.monotonic() - run.started
        metrics.JOBS_FINISHED.labels(job.queue, job.type, ended).inc()
        metrics.JOB_DURATION.labels(job.queue, job.type).observe(seconds)
        if ended == "lost":
            metrics.LEASE_LOST.labels(job.queue, job.type).inc()
        code = run.outcome.error.get("code") if run.outcome and run.outcome.error else None
        _log.info(
            "job.ended",
            job_id=str(job.id),
            org_id=str(job.org_id),
            job_type=job.type,
            attempt=job.attempt,
            outcome=ended,
            seconds=round(seconds, 3),
            code=code,
        )
        if self._is_limited():
            self._publisher.wake([Wake(job.queue, job.id, job.priority)])

    def _write_down(self, run: Run, in_doubt: bool) -> str:
        """What Postgres or an effect refuses makes the attempt fail, by the same rules as an exception of the
        handler's."""
        outcome = run.outcome
        if outcome is None:  # the job is not ours any more: nothing to write
            return "cancelled" if isinstance(run.exception, JobCancelled) else "lost"
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
            self._publish(moved)
            return outcome.kind.value
        return self._fenced_off(run, outcome, in_doubt)

    def _publish(self, moved: Moved) -> None:
        if moved.jobs:
            self._publisher.moved(moved)

    def _write(self, run: Run, outcome: Outcome) -> Moved:
        effects = _effects(run) if outcome.status is Status.COMPLETED else ()
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


def _effects(run: Run) -> tuple[Callable[[psycopg.Connection[dict[str, object]]], None], ...]:
    return run.result.effects if run.result is not None else ()
