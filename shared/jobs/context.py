"""What a handler sees of the job it runs, and how it declares itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import psycopg
from pydantic import BaseModel

from shared.contracts import JobType

__all__ = ["Done", "Handler", "JobContext", "JobInfo"]

P = TypeVar("P", bound=BaseModel)
P_contra = TypeVar("P_contra", bound=BaseModel, contravariant=True)
R = TypeVar("R", bound=BaseModel)
R_co = TypeVar("R_co", bound=BaseModel, covariant=True)

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """The claimed job's identity. ``attempt`` is the fencing token: it rises with every claim."""

    id: UUID
    org_id: UUID
    type: str
    attempt: int
    retry_count: int
    created_by: UUID | None
    created_at: datetime
    batch_id: UUID | None


class JobContext(Protocol):
    """Handed to a handler with its payload. Methods are safe from the handler's own thread."""

    @property
    def job(self) -> JobInfo: ...

    def progress(self, percent: int, step: str) -> None:
        """Record progress (0–100, never backwards) with the step in words a user reads.

        Raises LeaseLost when the job is no longer this worker's, JobCancelled when it was cancelled.
        """

    def log(self, message: str, **fields: Any) -> None:
        """A log line kept with this attempt. Ids, sizes and timings only."""

    def connection(self) -> AbstractContextManager[Connection]:
        """A pooled connection for reads, in autocommit. Writes belong in ``Done.effects``."""

    def on_interrupt(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, ``stop`` is called (from another thread) on cancel, time limit or lost lease.

        For work that Python cannot interrupt: kill the child process, close the socket.
        """

    def check(self) -> None:
        """Raises the pending interrupt (JobCancelled, JobTimeout, LeaseLost, WorkerStopping), if there is one."""


@dataclass(frozen=True, slots=True)
class Done(Generic[R_co]):
    """A handler's success: its result, and what must commit with it.

    ``effects`` run in the transaction that finishes the job, after the fence has been checked and
    before the commit, so a row written there is written exactly once however often the job ran.
    """

    result: R_co
    effects: tuple[Callable[[Connection], None], ...] = ()


class _Run(Protocol[P_contra, R_co]):
    def __call__(self, ctx: JobContext, payload: P_contra, /) -> R_co | Done[R_co]: ...


@dataclass(frozen=True, slots=True)
class Handler(Generic[P, R]):
    """Binds a job type to the function that does it. One per folder, made by ``build(deps)`` in its ``__init__``."""

    job_type: JobType[P, R]
    run: _Run[P, R]
