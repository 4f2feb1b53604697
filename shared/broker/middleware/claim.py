"""Claim a job when a wake-up arrives; settle it, under the fence, when the handler has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
import psycopg
import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, SkipMessage
from psycopg_pool import PoolTimeout

from shared.db import SyncPool
from shared.jobs import ClaimedJob, Handler, store
from shared.jobs.store import WorkerIdentity
from shared.telemetry import metrics, sentry

from ..consumer import CLAIMED, REQUEUE
from ..publisher import Publisher
from ..run import Run, RunRegistry, current_run
from ..settlement import Settlement
from .retries import decide, judge

__all__ = ["Claim"]

_log = structlog.get_logger(__name__)
_BOUND = ("job_id", "org_id", "job_type", "attempt")


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
        replace_thread: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._handlers = handlers
        self._pool = pool
        self._publisher = publisher
        self._runs = runs
        self._lease_seconds = lease_seconds
        self._replace_thread = replace_thread
        self._settlement = Settlement(pool, worker.id, publisher, judge)

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        with self._runs.claiming() as admitted:
            if not admitted:
                message.options[REQUEUE] = True
                raise SkipMessage("draining")
            run = self._begin(message.queue_name)
            message.options[CLAIMED] = True
        job = run.claimed
        metrics.WAKEUPS.labels(job.queue, "claimed").inc()
        metrics.JOBS_CLAIMED.labels(job.queue, job.type).inc()
        metrics.JOB_WAIT.labels(job.queue, job.type).observe(max(0.0, (job.started_at - job.run_at).total_seconds()))
        self._publisher.look([job.id])
        _bind(run)
        _log.info("job.started", queue=job.queue)

    def _begin(self, queue: str) -> Run:
        asked_at = time.monotonic()
        try:
            claimed = self._claim(queue)
        except Exception as e:
            metrics.WAKEUPS.labels(queue, "failed").inc()
            _log.warning("claim.failed", queue=queue, error=type(e).__name__)
            if not isinstance(e, psycopg.OperationalError):  # a pool's time-outs are those too
                sentry.capture(e, queue=queue)
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
            asked_at=asked_at,
            on_stuck=self._give_up,
        )
        self._runs.add(run)
        return run

    def _claim(self, queue: str) -> list[ClaimedJob]:
        for tries_left in (1, 0):
            try:
                with self._pool.connection() as conn:
                    return store.claim(conn, queue=queue, worker_id=self._worker.id, lease_seconds=self._lease_seconds)
            except psycopg.OperationalError as e:
                if not tries_left or isinstance(e, PoolTimeout):
                    raise
                # After a restart of Postgres each pooled connection is dead until it is tried. Have all of them
                # replaced, so that the wake-up is not spent on finding one out.
                self._pool.check()
        raise AssertionError("unreachable")

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
        self._runs.leave()
        try:
            if run.abandoned:
                # Settled long since, and another thread has this one's place: end with this message.
                self._runs.add_stuck(-1)
                threading.current_thread().running = False  # type: ignore[attr-defined]
            else:
                self._end(run)
        finally:
            structlog.contextvars.unbind_contextvars(*_BOUND)

    def _end(self, run: Run) -> None:
        ended = "lost"
        try:
            ended = self._settlement.settle(run)
        finally:
            self._runs.remove(run, ended)
            job = run.claimed
            seconds = time.monotonic() - run.started
            metrics.JOBS_FINISHED.labels(job.queue, job.type, ended).inc()
            metrics.JOB_DURATION.labels(job.queue, job.type).observe(seconds)
            if ended == "lost":
                metrics.LEASE_LOST.labels(job.queue, job.type).inc()
            code = run.outcome.error.get("code") if run.outcome and run.outcome.error else None
            _log.info("job.ended", outcome=ended, seconds=round(seconds, 3), code=code)

    def _give_up(self, run: Run) -> None:
        """End a run whose handler does not stop: its thread is left to itself, and replaced."""
        if not run.abandon():
            return
        _bind(run)
        _log.error("job.stuck", reason=type(run.interrupted).__name__)
        self._runs.add_stuck(1)
        try:
            run.outcome = decide(run)
            self._end(run)
        finally:
            self._replace_thread()


def _bind(run: Run) -> None:
    job = run.claimed
    structlog.contextvars.bind_contextvars(
        job_id=str(job.id), org_id=str(job.org_id), job_type=job.type, attempt=job.attempt
    )
