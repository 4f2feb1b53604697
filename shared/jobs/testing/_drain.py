"""Run the jobs of an in-memory store, one after another in this thread, until nothing is due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from shared import ids

from ..context import Connection, Handler
from ..models import ClaimedJob
from ..states import Status
from ..store import Claims
from ._clock import ManualClock
from ._inline import InlineContext, InlineRun, execute, judge
from ._memory import MemoryStore
from ._misuse import TestingKitMisuse

__all__ = ["drain"]

_LEASE_SECONDS = 3600.0


@dataclass(slots=True)
class _Stored:
    """Progress and log lines of a run, kept by the store under the fence."""

    store: MemoryStore
    job: ClaimedJob
    worker_id: UUID

    def progress(self, percent: int, step: str) -> bool:
        return self.store.progress(self.job.id, self.job.attempt, self.worker_id, percent, step) is not None

    def log(self, data: dict[str, Any]) -> bool:
        return self.store.log(self.job.id, self.job.attempt, self.worker_id, data) is not None

    def cancelled(self) -> bool:
        row = self.store.get(self.job.id)
        return row is not None and row["status"] == Status.CANCELLED and row["attempt"] == self.job.attempt


def drain(
    store: MemoryStore,
    handlers: Iterable[Handler[Any, Any]] | Mapping[str, Handler[Any, Any]],
    *,
    within: float | timedelta | None = None,
    connection: Connection | None = None,
    max_runs: int = 10_000,
) -> list[InlineRun[Any]]:
    """Run due jobs of the handlers' types, in the order in which workers would claim them, with all that follows from
    each. The runs, in order. Jobs of other types stay where they are.

    ``within`` moves the store's clock, a ManualClock, on to whatever falls due in so many seconds: retries, snoozes,
    ``run_at``, start limits. Without it, what is not due stays.

    Effects are written with the job's end, or the attempt fails, as in a worker: on ``connection`` where there is one
    (in a transaction; what they submit goes to Postgres then), else on the store, where effects can only submit jobs.
    A retry's delay has no jitter. Raises TestingKitMisuse after ``max_runs`` runs: something never ends.
    """
    by_type = handlers if isinstance(handlers, Mapping) else _by_name(handlers)
    queues = sorted({handler.job_type.queue for handler in by_type.values()})
    until = _until(store, within)
    worker_id = ids.new_uuid()
    runs: list[InlineRun[Any]] = []
    while True:
        job, wait = _claim(store, queues, list(by_type), worker_id)
        if job is None:
            if not _move_on(store, queues, until, wait):
                return runs
            continue
        if len(runs) >= max_runs:
            raise TestingKitMisuse(f"{max_runs} runs, and there is always another one due ({job.type})")
        runs.append(_run(store, by_type[job.type], job, worker_id, connection))


def _by_name(handlers: Iterable[Handler[Any, Any]]) -> dict[str, Handler[Any, Any]]:
    return {name: h for h in handlers for name in (h.job_type.name, *h.job_type.aliases)}


def _until(store: MemoryStore, within: float | timedelta | None) -> datetime | None:
    if within is None:
        return None
    if not isinstance(store.clock, ManualClock):
        raise TestingKitMisuse(
            "drain(within=…) moves the clock on: give the store one, MemoryStore(clock=ManualClock())"
        )
    return store.clock() + (within if isinstance(within, timedelta) else timedelta(seconds=within))


def _claim(
    store: MemoryStore, queues: list[str], types: list[str], worker_id: UUID
) -> tuple[ClaimedJob | None, float | None]:
    """The next job of any of the queues; else in how many seconds a start limit allows one."""
    store.unhold()
    waits = []
    for queue in queues:
        for alone in (False, True):  # nothing else runs here, so what must run alone may
            claims: Claims = store.claim(
                queue=queue, worker_id=worker_id, lease_seconds=_LEASE_SECONDS, types=types, alone=alone
            )
            if claims:
                return claims[0], None
            if claims.wait is not None:
                waits.append(claims.wait)
            if not claims.alone:
                break
    return None, min(waits, default=None)


def _move_on(store: MemoryStore, queues: list[str], until: datetime | None, wait: float | None) -> bool:
    """Move the clock on to what is next within ``until``. False when nothing is."""
    if until is None:
        return False
    clock = cast(ManualClock, store.clock)
    now = clock()
    due = store.next_due(queues)
    nexts = [] if due is None else [due]
    if wait is not None and store.due_queues():
        nexts.append(now + timedelta(seconds=wait) + timedelta(microseconds=1))
    nexts = [at for at in nexts if now < at <= until]
    if not nexts:
        return False
    clock.move_on(min(nexts) - now)
    return True


def _run(
    store: MemoryStore,
    handler: Handler[Any, Any],
    job: ClaimedJob,
    worker_id: UUID,
    connection: Connection | None,
) -> InlineRun[Any]:
    context = InlineContext(job, given=connection, record=_Stored(store, job, worker_id))
    run = execute(handler, context, jitter=0.0)
    if run.outcome is None:
        return run
    try:
        with store.transaction() as memory:
            if not store.settle(worker_id, [run.outcome]).jobs:
                # Cancelled meanwhile, by the handler itself: its result is dropped.
                run.ended, run.outcome, run.result, run.effects = "cancelled", None, None, ()
            elif run.effects:
                run.apply_effects(connection if connection is not None else cast(Any, memory))
    except TestingKitMisuse:
        raise
    except Exception as e:
        run.exception = e
        run.outcome = judge(handler, job, e, 0.0)
        run.ended = cast(Any, run.outcome.kind.value)
        run.result, run.effects = None, ()
        store.settle(worker_id, [run.outcome])
    return run
