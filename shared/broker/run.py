"""One attempt of one job inside this process: the handler's context, and how it is stopped from outside."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import DictRow
from pydantic import BaseModel, ValidationError

from shared.db import SyncPool, is_outage
from shared.jobs import (
    ClaimedJob,
    Done,
    Handler,
    JobCancelled,
    JobInfo,
    LeaseLost,
    Outcome,
    PermanentError,
    store,
)
from shared.jobs.states import Status
from shared.telemetry.redaction import is_forbidden, safe_value

from .interrupt import Interruptible
from .publisher import Publisher
from .stir import Stir

__all__ = ["Run", "RunRegistry", "current_run", "spread"]

_current = threading.local()


def current_run() -> Run | None:
    """The run that this worker thread is in the middle of."""
    return getattr(_current, "run", None)


class Run:
    """A claimed job being run by one thread. Also the JobContext that its handler sees.

    Ends once: by ``execute`` when the handler has ended, or by ``abandon`` when it would not stop (see ``interrupt``).
    """

    def __init__(
        self,
        claimed: ClaimedJob,
        handler: Handler[Any, Any] | None,
        *,
        worker_id: UUID,
        pool: SyncPool,
        publisher: Publisher,
        lease_seconds: float,
        asked_at: float,
        on_stuck: Callable[[Run], None],
        on_withdrawn: Callable[[Run, BaseException], None] | None = None,
    ) -> None:
        self.claimed = claimed
        self.handler = handler
        self.worker_id = worker_id
        self.result: Done[BaseModel] | None = None
        self.exception: BaseException | None = None
        self.outcome: Outcome | None = None
        self.started = time.monotonic()
        self.begun = False
        self.withdrawn = False
        self._taken = threading.Lock()
        # From before the claim was sent: by our clock the lease ends no later than by the database's.
        self.lease_deadline = asked_at + lease_seconds
        self._pool = pool
        self._publisher = publisher
        self._guard = Interruptible(lambda: on_stuck(self))
        self._on_withdrawn = on_withdrawn
        self._info = JobInfo(
            id=claimed.id,
            org_id=claimed.org_id,
            type=claimed.type,
            attempt=claimed.attempt,
            retry_count=claimed.retry_count,
            created_by=claimed.created_by,
            created_at=claimed.created_at,
            batch_id=claimed.batch_id,
        )

    # -- what the worker does with it

    @property
    def alone(self) -> bool:
        """Must nothing else run in this process meanwhile? Two processes died while they held the job."""
        return self.claimed.crash_count >= store.MAX_CRASHES

    @property
    def level(self) -> int:
        """Its priority as it was claimed: lifted by its waiting, as the claim does it."""
        job = self.claimed
        waited = (job.started_at - job.run_at).total_seconds()
        return max(0, job.priority - int(max(0.0, waited) // store.AGE_SECONDS))

    def begin(self) -> bool:
        """This thread takes the run up. False when it was withdrawn before."""
        with self._taken:
            if self.begun or self.withdrawn:
                return False
            self.begun = True
            return True

    def withdraw(self) -> bool:
        """Take back a run that no thread has taken up. False when one has."""
        with self._taken:
            if self.begun or self.withdrawn:
                return False
            self.withdrawn = True
            return True

    def end_unbegun(self, reason: BaseException) -> None:
        """End a run that was withdrawn, for ``reason``."""
        self._guard.end()
        self.exception = reason

    def execute(self) -> None:
        """Run the handler and keep its result or exception, unless the run was given up meanwhile. Raises nothing."""
        result: Done[BaseModel] | None = None
        exception: BaseException | None = None
        try:
            result = self._attempt()
        except BaseException as e:
            # Stopping what the handler waits for makes it fail in its own way; the reason is what counts.
            exception = self.interrupted or e
        if self._guard.end():
            self.result, self.exception = result, exception

    def _attempt(self) -> Done[BaseModel]:
        if self.handler is None:
            raise PermanentError("job.no_handler", "This service does not know how to do this kind of job.")
        job_type = self.handler.job_type
        try:
            payload = job_type.payload.model_validate(self.claimed.payload)
        except ValidationError as e:
            fields = sorted({".".join(str(p) for p in x["loc"]) for x in e.errors(include_input=False)})
            raise PermanentError(
                "job.invalid_payload", "The job's payload does not fit its type.", fields=fields[:20]
            ) from None
        self._guard.enter()
        try:
            self.check()
            if time.monotonic() >= self.lease_deadline:  # the process was paused meanwhile
                raise LeaseLost
            result = self.handler.run(self, payload)
        finally:
            self._guard.leave()
        done: Done[BaseModel] = result if isinstance(result, Done) else Done(result)
        if not isinstance(done.result, job_type.result):
            raise PermanentError(
                "job.invalid_result", "The work was done, but its result is not what this kind of job yields."
            )
        return done

    def interrupt(self, reason: BaseException) -> None:
        """Stop the handler, for ``reason``: from any thread, once or more (the first reason stands), at no wait.

        After the handler has ended this does nothing, so that ending the job is never torn. What no thread has taken
        up is withdrawn: there is nothing to stop.
        """
        if self._on_withdrawn is not None and self.withdraw():
            self._on_withdrawn(self, reason)
        else:
            self._guard.interrupt(reason)

    def abandon(self) -> bool:
        """End the run although its handler still runs, for good. False when it had ended."""
        if not self._guard.abandon():
            return False
        self.exception = self.interrupted
        return True

    @property
    def abandoned(self) -> bool:
        return self._guard.abandoned

    @property
    def interrupted(self) -> BaseException | None:
        return self._guard.reason

    # -- the JobContext

    @property
    def job(self) -> JobInfo:
        return self._info

    def progress(self, percent: int, step: str) -> None:
        self._write(
            lambda conn: store.progress(conn, self.claimed.id, self.claimed.attempt, self.worker_id, percent, step)
        )

    def log(self, message: str, **fields: Any) -> None:
        structlog.get_logger("job").info(message, **fields)
        # As the log's own redaction: the line is kept and shown.
        kept = {k: safe_value(v) for k, v in fields.items() if not is_forbidden(k, v)}
        data = {"message": safe_value(message), **kept}
        self._write(lambda conn: store.log(conn, self.claimed.id, self.claimed.attempt, self.worker_id, data))

    def _write(self, write: Callable[[psycopg.Connection[DictRow]], int | None]) -> None:
        """Write under the fence. A connection lost on the way is no fault of the job's: it is tried on another, for as
        long as the lease may still hold."""
        pause = 0.05
        while True:
            try:
                with self._guard.shielded(), self._pool.connection() as conn:
                    self._written(conn, write(conn))
                return
            except psycopg.OperationalError as e:
                if not is_outage(e):
                    raise
                if time.monotonic() + pause >= self.lease_deadline:
                    raise LeaseLost from None
            time.sleep(pause)
            pause = min(1.0, pause * 2)

    def _written(self, conn: psycopg.Connection[DictRow], seq: int | None) -> None:
        if seq is not None:
            self._publisher.look([self.claimed.id])
            return
        self.check()
        row = conn.execute("select status, attempt from jobs where id = %s", (self.claimed.id,)).fetchone()
        if row is not None and row["status"] == Status.CANCELLED and row["attempt"] == self.claimed.attempt:
            raise JobCancelled
        raise LeaseLost

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[DictRow]]:
        # Taking and giving back are shielded: an interrupt in the middle of either would cost the pool a connection.
        with self._guard.shielded(), self._pool.connection() as conn, self._guard.exposed():
            yield conn

    def on_interrupt(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        return self._guard.stopping(stop)

    def check(self) -> None:
        if self.interrupted is not None:
            raise self.interrupted


class RunRegistry:
    """All runs of this process: what the heartbeat renews, shutdown waits for and statistics count.

    A run is here from its claim until its end is written; it is ``open`` until its handler has ended.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[UUID, int], Run] = {}
        self._changed = threading.Condition()
        self._claims = 0  # under way
        self.draining = False
        self.counts: dict[str, int] = {}
        self.stuck = 0  # threads whose handler would not stop
        self.open = 0
        self.alone = False  # one of them must be the only one
        self.mean_seconds: float | None = (
            None  # of the last handlers, from taking up to the end, weighted to the newest
        )
        self.refill_at = 0  # when this few are open, more are wanted
        self.freed = Stir()  # ... and that has come to be

    def drain(self) -> None:
        """From now on no claim begins."""
        with self._changed:
            self.draining = True

    @contextlib.contextmanager
    def claiming(self) -> Iterator[bool]:
        """Around a claim and the ``add`` that follows it, so that draining waits for both. False: claim nothing."""
        with self._changed:
            admitted = not self.draining
            self._claims += admitted
        try:
            yield admitted
        finally:
            with self._changed:
                self._claims -= admitted
                self._changed.notify_all()

    def add(self, run: Run) -> None:
        """A run that was claimed; some thread will take it up."""
        with self._changed:
            self._runs[run.claimed.id, run.claimed.attempt] = run
            self.open += 1
            self.alone = self.alone or run.alone

    def enter(self, run: Run) -> None:
        """This thread is in the middle of ``run``."""
        _current.run = run

    def leave(self) -> None:
        """This thread is done with its run."""
        _current.run = None

    def ended(self, run: Run, seconds: float | None) -> None:
        """The handler has ended, after ``seconds``, or was never taken up (None)."""
        with self._changed:
            self.open -= 1
            if seconds is not None:
                mean = self.mean_seconds
                self.mean_seconds = seconds if mean is None else mean + 0.2 * (seconds - mean)
            wanted = self.open <= self.refill_at
        if wanted:
            self.freed.set()

    def remove(self, run: Run, outcome: str) -> bool:
        """The run's end is written. False when it had been before."""
        with self._changed:
            if self._runs.pop((run.claimed.id, run.claimed.attempt), None) is None:
                return False
            self.counts[outcome] = self.counts.get(outcome, 0) + 1
            idle = not self._runs
            if idle:
                self.alone = False
                self._changed.notify_all()
        if idle:  # what must run alone may now
            self.freed.set()
        return True

    def add_stuck(self, by: int) -> None:
        with self._changed:
            self.stuck += by

    def all(self) -> list[Run]:
        with self._changed:
            return list(self._runs.values())

    def all_unless_claiming(self) -> list[Run] | None:
        """As ``all``; None while a claim is under way, which may hold jobs that are not here yet."""
        with self._changed:
            return None if self._claims else list(self._runs.values())

    @property
    def unwritten(self) -> int:
        """How many have ended whose end is not written yet."""
        with self._changed:
            return len(self._runs) - self.open

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs or is being claimed, at most ``timeout`` seconds. True when idle."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._runs and not self._claims, max(0.0, timeout))


def spread() -> float:
    """A jitter in [-1, 1]."""
    return random.uniform(-1, 1)  # noqa: S311 - not a secret
