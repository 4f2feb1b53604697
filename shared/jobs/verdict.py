"""How an attempt ended: completed, failed, to be retried, snoozed, or given back. Decided here, written by the store.

One set of rules for whoever runs handlers: the broker's worker threads, and the testing kit's inline runs.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from shared.db import is_outage

from .context import Done, Handler
from .errors import JobCancelled, JobError, JobTimeout, LeaseLost, RetryableError, Snooze, WorkerStopping
from .models import ClaimedJob, Outcome

__all__ = ["Attempt", "decide", "describe", "judge"]

# How far a provider's Retry-After is believed, and how long a job may snooze at a time, in seconds.
_MAX_RETRY_AFTER = 3600.0
_MAX_SNOOZE = 86400.0
# After an outage of Postgres in the middle of a handler's own reading, which is not charged to the job.
_OUTAGE_PAUSE = 2.0
_MAX_FRAMES = 12

# A jitter in [-1, 1], drawn for a retry's delay.
Spread = Callable[[], float]
# Told of an exception that no handler means to raise.
Report = Callable[[ClaimedJob, BaseException], None]


class Attempt(Protocol):
    """What is looked at of an attempt that has ended."""

    @property
    def claimed(self) -> ClaimedJob: ...

    @property
    def handler(self) -> Handler[Any, Any] | None: ...

    @property
    def result(self) -> Done[BaseModel] | None: ...

    @property
    def exception(self) -> BaseException | None: ...


def decide(attempt: Attempt, *, spread: Spread, report: Report) -> Outcome | None:
    """The outcome of an attempt. None where nothing may be written: the job is another's, or cancelled. Raises
    nothing."""
    e = attempt.exception
    job = attempt.claimed
    if e is None and attempt.result is not None:
        try:
            return Outcome.completed(job, attempt.result.result.model_dump(mode="json"))
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
    return judge(attempt, e, spread=spread, report=report)


def judge(attempt: Attempt, e: BaseException | None, *, spread: Spread, report: Report) -> Outcome:
    """A failed attempt's outcome: tried again, or failed. A surprise is reported."""
    job = attempt.claimed
    if isinstance(e, JobTimeout):
        message = (
            f"This took longer than the {job.time_limit:.0f} seconds allowed and was stopped. "
            "Try again with a smaller file or fewer pages."
        )
        return _retry_or_fail(attempt, {"code": "job.time_limit", "message": message}, None, spread)
    error = describe(e)
    if isinstance(e, JobError) and not e.retryable:
        return Outcome.failed(job, error)
    if e is not None and not isinstance(e, JobError):
        report(job, e)
    return _retry_or_fail(attempt, error, e.retry_after if isinstance(e, RetryableError) else None, spread)


def _retry_or_fail(attempt: Attempt, error: Mapping[str, Any], retry_after: float | None, spread: Spread) -> Outcome:
    job = attempt.claimed
    if job.retry_count >= job.max_retries or attempt.handler is None:
        return Outcome.failed(job, error)
    if retry_after is not None:
        return Outcome.retry(job, error, _bounded(retry_after, _MAX_RETRY_AFTER))
    return Outcome.retry(job, error, attempt.handler.job_type.policy.backoff(job.retry_count + 1, spread()))


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
