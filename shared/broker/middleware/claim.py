"""Carries a claimed job through a worker thread: begun, run, and its end written down under the fence."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, SkipMessage

from shared.jobs import WorkerStopping

from ..consumer import RunMessage
from ..run import Run, RunRegistry, current_run
from ..settlement import Settlement
from .retries import decide

__all__ = ["Claim"]

_log = structlog.get_logger(__name__)
_BOUND = ("job_id", "org_id", "job_type", "attempt")


class Claim(Middleware):
    """The claim took the best due job, with priority and fairness (``claimer``); this takes it up and settles it.

    Dramatiq runs the actor even when a before-hook raised (FACTS.md), so every failure here is a skip.
    """

    def __init__(self, *, runs: RunRegistry, settlement: Settlement, replace_thread: Callable[[], None]) -> None:
        self._runs = runs
        self._settlement = settlement
        self._replace_thread = replace_thread

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        if self._runs.draining:
            self.withdraw_all()  # of a claim that was under way when the draining began
        if not isinstance(message, RunMessage) or not message.run.begin():
            raise SkipMessage("withdrawn")
        run = message.run
        run.started = time.monotonic()
        self._runs.enter(run)
        _bind(run)
        job = run.claimed
        _log.debug("job.started", queue=job.queue)

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
        self._runs.ended(run, time.monotonic() - run.started)
        self._settlement.settle(run)

    def give_up(self, run: Run) -> None:
        """End a run whose handler does not stop: its thread is left to itself, and replaced."""
        if not run.abandon():
            return
        _bind(run)
        _log.error("job.stuck", reason=type(run.interrupted).__name__)
        self._runs.add_stuck(1)
        with contextlib.ExitStack() as always:
            always.callback(self._end, run)
            self._replace_thread()  # before the end, which waits for Postgres
            run.outcome = decide(run)

    def withdraw_all(self) -> None:
        """Give back what was claimed and no thread has taken up. Waits for nothing."""
        self.end_unbegun([run for run in self._runs.all() if run.withdraw()], WorkerStopping())

    def end_unbegun(self, runs: Sequence[Run], reason: BaseException) -> None:
        """End runs that were withdrawn, for ``reason``. Waits for nothing: it is called by threads that must go on."""
        for run in runs:
            run.end_unbegun(reason)
            run.outcome = decide(run)
            self._runs.ended(run, None)
        written = [run for run in runs if run.outcome is not None]
        self._settlement.settle(*(run for run in runs if run.outcome is None))
        if written:
            threading.Thread(target=self._settlement.settle, args=written, name="give-back", daemon=True).start()


def _bind(run: Run) -> None:
    job = run.claimed
    structlog.contextvars.bind_contextvars(
        job_id=str(job.id), org_id=str(job.org_id), job_type=job.type, attempt=job.attempt
    )
