"""One attempt of one job inside this process: the handler's context, and how it is stopped from outside."""

from __future__ import annotations

import contextlib
import ctypes
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
from pydantic import BaseModel

from shared.db import SyncPool
from shared.jobs import (
    ClaimedJob,
    Done,
    Handler,
    JobInfo,
    LeaseLost,
    Outcome,
    store,
)

from .publisher import Publisher

__all__ = ["Run", "RunRegistry", "current_run"]

_current = threading.local()


def current_run() -> Run | None:
    """The run that this worker thread is in the middle of."""
    return getattr(_current, "run", None)


class Run:
    """A claimed job being run by one thread. Also the JobContext that its handler sees.

    ``interrupt`` may be called from any thread, once or more: the first reason stands. It stops what the handler
    registered by ``on_interrupt``, then raises the reason inside the handler's thread. After ``execute`` has
    returned, an interrupt does nothing, so that ending the job is never torn.
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
    ) -> None:
        self.claimed = claimed
        self.handler = handler
        self.worker_id = worker_id
        self.result: Done[BaseModel] | None = None
        self.exception: BaseException | None = None
        self.outcome: Outcome | None = None
        self.started = time.monotonic()
        self.lease_deadline = self.started + lease_seconds
        self._pool = pool
        self._publisher = publisher
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        self._pending: BaseException | None = None
        self._stops: list[Callable[[], None]] = []
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

    def execute(self) -> None:
        """Run the handler and keep its result or exception. Raises nothing."""
        assert self.handler is not None
        try:
            payload = self.handler.job_type.payload.model_validate(self.claimed.payload)
            self._enter()
            try:
                self.check()
                result = self.handler.run(self, payload)
            finally:
                self._leave()
            self.result = result if isinstance(result, Done) else Done(result)
        except BaseException as e:
            # Stopping what the handler waits for makes it fail in its own way; the reason is what counts.
            self.exception = self._pending or e

    def interrupt(self, reason: BaseException) -> None:
        with self._lock:
            if self._pending is not None:
                return
            self._pending = reason
            stops = list(self._stops)
        for stop in stops:
            with contextlib.suppress(Exception):
                stop()
        with self._lock:
            if self._thread_id is not None:
                _raise_in_thread(self._thread_id, type(reason))

    @property
    def interrupted(self) -> BaseException | None:
        return self._pending

    def _enter(self) -> None:
        with self._lock:
            self._thread_id = threading.get_ident()

    def _leave(self) -> None:
        # An exception may be on its way to this thread: from here on none is sent, and one that was sent but not
        # yet delivered is taken back, or caught by the loop.
        while True:
            try:
                with self._lock:
                    thread_id, self._thread_id = self._thread_id, None
                    if thread_id is not None:
                        _raise_in_thread(thread_id, None)
                return
            except BaseException as e:
                if self._pending is None:
                    raise
                self.exception = e

    # -- the JobContext

    @property
    def job(self) -> JobInfo:
        return self._info

    def progress(self, percent: int, step: str) -> None:
        self.check()
        with self._pool.connection() as conn:
            seq = store.progress(conn, self.claimed.id, self.claimed.attempt, self.worker_id, percent, step)
        self._written(seq)

    def log(self, message: str, **fields: Any) -> None:
        self.check()
        structlog.get_logger("job").info(message, **fields)
        with self._pool.connection() as conn:
            seq = store.log(conn, self.claimed.id, self.claimed.attempt, self.worker_id, {"message": message, **fields})
        self._written(seq)

    def _written(self, seq: int | None) -> None:
        if seq is None:
            self.check()
            raise LeaseLost
        self._publisher.look([self.claimed.id])

    def connection(self) -> AbstractContextManager[psycopg.Connection[DictRow]]:
        return self._pool.connection()

    @contextlib.contextmanager
    def on_interrupt(self, stop: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._stops.append(stop)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)

    def check(self) -> None:
        if self._pending is not None:
            raise self._pending


def _raise_in_thread(thread_id: int, exception: type[BaseException] | None) -> None:
    """Have ``exception`` raised in that thread at its next bytecode; None takes back one not yet raised.

    CPython's PyThreadState_SetAsyncExc. It cannot interrupt C code: that is what ``on_interrupt`` is for.
    """
    target = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)


class RunRegistry:
    """All runs of this process: what the heartbeat renews, shutdown waits for and statistics count."""

    def __init__(self) -> None:
        self._runs: dict[tuple[UUID, int], Run] = {}
        self._changed = threading.Condition()
        self.draining = False
        self.counts: dict[str, int] = {}

    def add(self, run: Run) -> None:
        with self._changed:
            self._runs[run.claimed.id, run.claimed.attempt] = run
        _current.run = run

    def remove(self, run: Run, outcome: str) -> None:
        with self._changed:
            self._runs.pop((run.claimed.id, run.claimed.attempt), None)
            self.counts[outcome] = self.counts.get(outcome, 0) + 1
            self._changed.notify_all()
        _current.run = None

    def all(self) -> list[Run]:
        with self._changed:
            return list(self._runs.values())

    def get(self, id: UUID, attempt: int) -> Run | None:
        with self._changed:
            return self._runs.get((id, attempt))

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs, at most ``timeout`` seconds. True when idle."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._runs, max(0.0, timeout))


def spread() -> float:
    """A jitter in [-1, 1]."""
    return random.uniform(-1, 1)  # noqa: S311 - not a secret
