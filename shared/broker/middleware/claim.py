"""Claim a job when a wake-up arrives; settle it, under the fence, when the handler has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, SkipMessage
from psycopg_pool import PoolTimeout

from shared.db import SyncPool
from shared.jobs import Handler, Outcome, Status, store
from shared.jobs.store import WorkerIdentity
from shared.telemetry import metrics

from ..publisher import Publisher
from ..run import Run, RunRegistry, current_run

__all__ = ["Claim"]

_log = structlog.get_logger(__name__)
_DOWN = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)


class Claim(Middleware):
    """Carries priorities and fairness: the message says only "look", the claim takes the best due job.

    Dramatiq runs the actor even when a before-hook raised (FACTS.md), so every failure here is a skip.
    """

    def __init__(
        self,
        *,
        worker: WorkerIdentity,
        handlers: Mapping[str, Handler[Any, Any]],
        pool: SyncPool,
        publisher: Publisher,
        runs: RunRegistry,
        lease_seconds: float,
    ) -> None:
        self._worker = worker
        self._handlers = handlers
        self._pool = pool
        self._publisher = publisher
        self._runs = runs
        self._lease_seconds = lease_seconds

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        queue = message.queue_name
        if self._runs.draining:
            raise SkipMessage("draining")
        try:
            with self._pool.connection() as conn:
                claimed = store.claim(conn, queue=queue, worker_id=self._worker.id, lease_seconds=self._lease_seconds)
        except Exception as e:
            metrics.WAKEUPS.labels(queue, "failed").inc()
            _log.warning("claim.failed", queue=queue, error=type(e).__name__)
            raise SkipMessage("claim failed") from None
        if not claimed:
            metrics.WAKEUPS.labels(queue, "empty").inc()
            raise SkipMessage("nothing due")
        job = claimed[0]
        run = Run(
            job,
            self._handlers.get(job.type),
            worker_id=self._worker.id,
            pool=self._pool,
            publisher=self._publisher,
            lease_seconds=self._lease_seconds,
        )
        self._runs.add(run)
        metrics.WAKEUPS.labels(queue, "claimed").inc()
        metrics.JOBS_CLAIMED.labels(queue, job.type).inc()
        metrics.JOB_WAIT.labels(queue, job.type).observe(max(0.0, (job.started_at - job.run_at).total_seconds()))
        self._publisher.look([job.id])
        structlog.contextvars.bind_contextvars(
            job_id=str(job.id), org_id=str(job.org_id), job_type=job.type, attempt=job.attempt
        )
        _log.info("job.started", queue=queue)

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        run = current_run()
        if run is None:
            return
        ended = "lost"
        try:
            ended = self._settle(run)
        finally:
            self._runs.remove(run, ended)
            job = run.claimed
            seconds = time.monotonic() - run.started
            metrics.JOBS_FINISHED.labels(job.queue, job.type, ended).inc()
            metrics.JOB_DURATION.labels(job.queue, job.type).observe(seconds)
            code = run.outcome.error.get("code") if run.outcome and run.outcome.error else None
            _log.info("job.ended", outcome=ended, seconds=round(seconds, 3), code=code)
            structlog.contextvars.unbind_contextvars("job_id", "org_id", "job_type", "attempt")

    def _settle(self, run: Run) -> str:
        """Write the outcome, waiting out a Postgres that is away for as long as the lease holds."""
        outcome = run.outcome
        if outcome is None:  # the job is not ours any more: nothing to write
            metrics.LEASE_LOST.labels(run.claimed.queue, run.claimed.type).inc()
            return "lost"
        pause = 0.1
        while True:
            try:
                moved = self._write(run, outcome)
                break
            except _DOWN as e:
                if time.monotonic() + pause >= run.lease_deadline:
                    _log.warning("settle.given_up", error=type(e).__name__)
                    return "lost"
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            except Exception as e:
                # An effect or a result that Postgres refuses: the attempt failed, and says so.
                if outcome.status is not Status.COMPLETED:
                    _log.error("settle.broken", error=type(e).__name__)
                    return "lost"
                outcome = run.outcome = self._refused(run, e)
        if not moved.jobs:
            metrics.LEASE_LOST.labels(run.claimed.queue, run.claimed.type).inc()
            return "lost"
        self._publisher.moved(moved)
        return outcome.kind.value

    def _write(self, run: Run, outcome: Outcome) -> Any:
        effects = run.result.effects if run.result is not None and outcome.status is Status.COMPLETED else ()
        with self._pool.connection() as conn, conn.transaction():
            moved = store.settle(conn, self._worker.id, [outcome])
            if moved.jobs:
                for effect in effects:
                    effect(conn)
            return moved

    def _refused(self, run: Run, error: Exception) -> Outcome:
        from .retries import describe, retry_or_fail

        return retry_or_fail(run, describe(error), retry_after=None)


def job_uuid(text: str) -> UUID | None:
    """The job a wake-up names, or None: the name is a hint and may be anything."""
    try:
        return UUID(text)
    except ValueError:
        return None
