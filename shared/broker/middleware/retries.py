"""How an attempt ended: complete, fail, retry later, snooze, or give back. Decided here, written by Claim.

Dramatiq's own Retries re-enqueues through Redis after the fact, where a blip loses the job (FACTS.md); this one
only decides, and Postgres keeps the decision.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware

from shared.db import is_outage
from shared.jobs import JobCancelled, JobError, JobTimeout, LeaseLost, Outcome, RetryableError, Snooze, WorkerStopping
from shared.telemetry import sentry

from ..run import Run, current_run, spread

__all__ = ["Retries", "decide", "describe", "judge", "retry_or_fail"]

# How far a provider's Retry-After is believed, and how long a job may snooze at a time, in seconds.
_MAX_RETRY_AFTER = 3600.0
_MAX_SNOOZE = 86400.0
# After an outage of Postgres in the middle of a handler's own reading, which is not charged to the job.
_OUTAGE_PAUSE = 2.0
_MAX_FRAMES = 12


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
    e = run.exception
    job = run.claimed
    if e is None and run.result is not None:
        try:
            return Outcome.completed(job, run.result.result.model_dump(mode="json"))
        except Exception as unfit:
            e = unfit
    if isinstance(e, LeaseLost | JobCancelled):
        return None
    if isinstance(e, WorkerStopping):
        return Outcome.released(job)
    if e is not None and is_outage(e):
        return Outcome.snoozed(job, "The database was away for a moment.", _OUTAGE_PAUSE)
    if isinstance(e, Snooze):
        return Outcome.snoozed(job, e.why, _bounded(e.seconds, _MAX_SNOOZE))
    return judge(run, e)


def judge(run: Run, e: BaseException | None) -> Outcome:
    """A failed attempt's outcome: tried again, or failed. A surprise is reported."""
    if isinstance(e, JobTimeout):
        message = (
            f"This took longer than the {run.claimed.time_limit:.0f} seconds allowed and was stopped. "
            "Try again with a smaller file or fewer pages."
        )
        return retry_or_fail(run, {"code": "job.time_limit", "message": message}, retry_after=None)
    error = describe(e)
    if isinstance(e, JobError) and not e.retryable:
        return Outcome.failed(run.claimed, error)
    if e is not None and not isinstance(e, JobError):
        job = run.claimed
        sentry.capture(e, job_id=job.id, org_id=job.org_id, job_type=job.type, queue=job.queue, attempt=job.attempt)
    return retry_or_fail(run, error, e.retry_after if isinstance(e, RetryableError) else None)


def retry_or_fail(run: Run, error: Mapping[str, Any], retry_after: float | None) -> Outcome:
    job = run.claimed
    if job.retry_count >= job.max_retries or run.handler is None:
        return Outcome.failed(job, error)
    delay = run.handler.job_type.policy.backoff(job.retry_count + 1, spread())
    if retry_after is not None:
        delay = _bounded(retry_after, _MAX_RETRY_AFTER)
    return Outcome.retry(job, error, delay)


def describe(e: BaseException | None) -> dict[str, Any]:
    """An error as it is stored: code, sentence and, for a surprise, its type and frames.

    Never an unknown exception's text: it may quote a student's work.
    """
    if isinstance(e, JobError):
        return {"code": e.code, "message": e.message, "details": dict(e.details)}
    frames = traceback.extract_tb(e.__traceback__)[-_MAX_FRAMES:] if e is not None else []
    return {
        "code": "job.internal_error",
        "message": "Something went wrong on our side. The job is tried again where tries are left.",
        "details": {
            "exception": type(e).__name__ if e is not None else "unknown",
            "traceback": [f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames],
        },
    }


def _bounded(seconds: float, most: float) -> float:
    return min(max(seconds, 0.0), most) if not math.isnan(seconds) else 0.0
