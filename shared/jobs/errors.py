"""What a handler raises to say how its job should end. Nothing here knows of HTTP or a broker.

Messages are shown to teachers and stored with the job: a sentence that says what is wrong and what
to do, never text out of the student's work.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

__all__ = [
    "InvalidSubmit",
    "JobCancelled",
    "JobError",
    "JobTimeout",
    "LeaseLost",
    "PermanentError",
    "RetryableError",
    "Snooze",
    "WorkerStopping",
]


class JobError(Exception):
    """A failure with a stable ``code`` (dotted, e.g. ``document.encrypted``) and a sentence for people."""

    retryable = True

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details  # ids, sizes and numbers only

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RetryableError(JobError):
    """May pass when tried again. ``retry_after`` (seconds), where a provider named it, replaces the back-off."""

    def __init__(self, code: str, message: str, *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.retry_after = retry_after


class PermanentError(JobError):
    """Trying again cannot help: the job fails at once, whatever retries are left."""

    retryable = False


class Snooze(Exception):
    """Not now: run again in ``seconds``. Costs no retry."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(seconds, why)
        self.seconds = seconds
        self.why = why


class _Interrupt(BaseException):
    """Raised inside a running handler from outside. A BaseException, so that no handler swallows it by accident."""


class JobCancelled(_Interrupt):
    """Somebody cancelled the job; the handler stops and its result is dropped."""


class JobTimeout(_Interrupt):
    """The attempt ran past its time limit."""


class LeaseLost(_Interrupt):
    """The lease ran out and the job is another worker's now: stop, and write nothing."""


class WorkerStopping(_Interrupt):
    """The process is shutting down and the grace period is over; the job is given back, charged to nobody."""


class InvalidSubmit(ValueError):
    """The job was refused before it was accepted. ``param`` names the field at fault; ``existing``, where there is
    one, the job that has the same unique key."""

    def __init__(self, code: str, param: str, message: str, existing: UUID | None = None) -> None:
        super().__init__(code, param, message)
        self.code = code
        self.param = param
        self.message = message
        self.existing = existing

    def __str__(self) -> str:
        return f"{self.param}: {self.message}"
