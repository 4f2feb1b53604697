"""Retries of a run that failed, and what becomes of any other: shared.jobs.verdict decides, Claim writes it.

Dramatiq's own Retries re-enqueues through Redis after the fact, where a blip loses the job (FACTS.md); this one
only decides, and Postgres keeps the decision.
"""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware

from shared.jobs import ClaimedJob, Outcome, verdict
from shared.telemetry import sentry

from ..run import Run, current_run, spread

__all__ = ["Retries", "decide", "judge"]


class Retries(Middleware):
    """Retries with exponential back-off and jitter by the job type's policy and the job's ``max_retries``."""

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        run = current_run()
        if run is not None and not run.abandoned:
            run.outcome = decide(run)


def decide(run: Run) -> Outcome | None:
    """The outcome of a run. None where nothing may be written: the job is another's, or cancelled. Raises nothing."""
    return verdict.decide(run, spread=spread, report=_report)


def judge(run: Run, e: BaseException | None) -> Outcome:
    """A failed attempt's outcome: tried again, or failed. A surprise is reported."""
    return verdict.judge(run, e, spread=spread, report=_report)


def _report(job: ClaimedJob, e: BaseException) -> None:
    sentry.capture(e, job_id=job.id, org_id=job.org_id, job_type=job.type, queue=job.queue, attempt=job.attempt)
