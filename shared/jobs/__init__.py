"""The job-status library: one state machine over Postgres, and what may be asked of it."""

from .context import Done, Handler, JobContext, JobInfo
from .errors import (
    InvalidSubmit,
    JobCancelled,
    JobError,
    JobTimeout,
    LeaseLost,
    PermanentError,
    RetryableError,
    Snooze,
    WorkerStopping,
)
from .models import ClaimedJob, LostLease, Moved, NewBatch, NewJob, OnFailure, Outcome, ParentEdge, Unique, Wake
from .states import ACTIVE, TERMINAL, TRANSITIONS, EventKind, Hold, Priority, Status, Transition
from .submit import Accepted, insert_batch, insert_batch_async, submit, submit_async, validate

__all__ = [
    "ACTIVE",
    "TERMINAL",
    "TRANSITIONS",
    "Accepted",
    "ClaimedJob",
    "Done",
    "EventKind",
    "Handler",
    "Hold",
    "InvalidSubmit",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobInfo",
    "JobTimeout",
    "LeaseLost",
    "LostLease",
    "Moved",
    "NewBatch",
    "NewJob",
    "OnFailure",
    "Outcome",
    "ParentEdge",
    "PermanentError",
    "Priority",
    "RetryableError",
    "Snooze",
    "Status",
    "Transition",
    "Unique",
    "Wake",
    "WorkerStopping",
    "insert_batch",
    "insert_batch_async",
    "submit",
    "submit_async",
    "validate",
]
