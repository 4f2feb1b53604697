"""Run a handler in this thread, as the runner would (shared/broker/run.py). How it ended, ``verdict`` says to both.

The layers forbid importing the runner from here; tests/shared/jobs/test_testing_kit.py runs both on the same handlers
and holds that they agree.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, Protocol, TypeVar, cast
from uuid import UUID

import psycopg
from pydantic import BaseModel, ValidationError

from shared import ids
from shared.telemetry.redaction import is_forbidden, safe_value

from .. import verdict
from ..context import Connection, Done, Handler, JobInfo
from ..errors import JobCancelled, JobTimeout, LeaseLost, PermanentError, WorkerStopping
from ..models import ClaimedJob, Outcome
from ..states import Priority
from ._misuse import TestingKitMisuse
from ._tables import as_stored

__all__ = ["InlineRun", "InterruptAfter", "Progress", "execute", "run_inline"]

R = TypeVar("R", bound=BaseModel)
P = TypeVar("P", bound=BaseModel)

# As shared/broker/interrupt.py: how long what ``on_interrupt`` registered may take.
_STOP_SECONDS = 1.0

Ended = Literal["completed", "retrying", "failed", "snoozed", "released", "cancelled", "lost"]
_REASONS: dict[str, type[BaseException]] = {
    "cancelled": JobCancelled,
    "time limit": JobTimeout,
    "lease lost": LeaseLost,
    "worker stopping": WorkerStopping,
}


@dataclass(frozen=True, slots=True)
class InterruptAfter:
    """Interrupt the handler as its ``progress_calls``-th call of ``progress`` has been recorded; 0: before it begins.

    As in a worker, what ``on_interrupt`` registered is called from another thread, and then the reason is raised.
    """

    progress_calls: int
    reason: Literal["cancelled", "time limit", "lease lost", "worker stopping"] = "cancelled"


@dataclass(frozen=True, slots=True)
class Progress:
    """A recorded step; ``percent`` as it is stored: 0 to 100, never backwards."""

    percent: int
    step: str


@dataclass(slots=True)
class InlineRun(Generic[R]):
    """How the run ended, and what it did.

    ``ended`` in the words of metrics; ``cancelled`` and ``lost`` write nothing, so they have no ``outcome``.
    ``exception`` is what the handler raised, for a test to look at: what is stored is ``error``, which never has an
    unknown exception's text.
    """

    job: ClaimedJob
    ended: Ended
    outcome: Outcome | None
    result: R | None
    exception: BaseException | None
    progress: list[Progress]
    logs: list[dict[str, Any]]
    effects: tuple[Callable[[Connection], None], ...]

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Code, message and details, as they are stored."""
        return None if self.outcome is None else self.outcome.error

    @property
    def delay(self) -> float | None:
        """Seconds until it runs again, when it is to."""
        return None if self.outcome is None else self.outcome.delay

    def apply_effects(self, conn: Connection) -> None:
        """Write what commits with the result, in a transaction: all of it or nothing.

        Raises what an effect raises (a worker would take that for a failed attempt), and TestingKitMisuse for a run
        that did not complete, whose effects nobody writes.
        """
        if self.ended != "completed":
            raise TestingKitMisuse(f"the run ended as {self.ended}: only a completed one's effects are written")
        with conn.transaction():
            for effect in self.effects:
                effect(conn)
            if isinstance(conn, psycopg.Connection) and (
                conn.info.transaction_status is psycopg.pq.TransactionStatus.INERROR
            ):
                raise psycopg.errors.InFailedSqlTransaction("an effect left the transaction broken")


class Record(Protocol):
    """Where progress and log lines go. False: the job is no longer this attempt's."""

    def progress(self, percent: int, step: str) -> bool: ...

    def log(self, data: dict[str, Any]) -> bool: ...

    def cancelled(self) -> bool: ...


@dataclass(slots=True)
class InlineContext:
    """The JobContext of an inline run."""

    claimed: ClaimedJob
    given: Connection | None = None
    interrupt: InterruptAfter | None = None
    record: Record | None = None
    steps: list[Progress] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    reason: BaseException | None = None
    misuse: TestingKitMisuse | None = None
    _stops: list[Callable[[], None]] = field(default_factory=list)

    @property
    def job(self) -> JobInfo:
        c = self.claimed
        return JobInfo(
            id=c.id,
            org_id=c.org_id,
            type=c.type,
            attempt=c.attempt,
            retry_count=c.retry_count,
            created_by=c.created_by,
            created_at=c.created_at,
            batch_id=c.batch_id,
        )

    def begin(self) -> None:
        if self.interrupt is not None and self.interrupt.progress_calls <= 0:
            self._interrupt(self.interrupt)
        self.check()

    def progress(self, percent: int, step: str) -> None:
        self.check()
        if self.record is not None and not self.record.progress(percent, step):
            self._gone()
        highest = self.steps[-1].percent if self.steps else 0
        self.steps.append(Progress(max(highest, min(100, percent)), step))
        if self.interrupt is not None and len(self.steps) == self.interrupt.progress_calls:
            self._interrupt(self.interrupt)
        self.check()

    def log(self, message: str, **fields: Any) -> None:
        self.check()
        kept = {name: safe_value(value) for name, value in fields.items() if not is_forbidden(name, value)}
        data = as_stored({"message": safe_value(message), **kept})
        if self.record is not None and not self.record.log(data):
            self._gone()
        self.logs.append(data)

    def _gone(self) -> None:
        assert self.record is not None
        raise JobCancelled if self.record.cancelled() else LeaseLost

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        self.check()
        if self.given is None:
            self.misuse = TestingKitMisuse("the handler reads from Postgres: give run_inline or drain a connection=")
            raise self.misuse
        yield self.given
        self.check()

    @contextlib.contextmanager
    def on_interrupt(self, stop: Callable[[], None]) -> Iterator[None]:
        self._stops.append(stop)
        try:
            self.check()
            yield
        finally:
            self._stops.remove(stop)

    def check(self) -> None:
        if self.reason is not None:
            raise self.reason

    def _interrupt(self, wanted: InterruptAfter) -> None:
        self.reason = _REASONS[wanted.reason]()
        if self._stops:
            stopper = threading.Thread(target=self._call_stops, daemon=True)
            stopper.start()
            stopper.join(_STOP_SECONDS)

    def _call_stops(self) -> None:
        for stop in list(self._stops):
            with contextlib.suppress(Exception):
                stop()


def run_inline(
    handler: Handler[P, R],
    payload: P | Mapping[str, Any],
    *,
    attempt: int = 1,
    org_id: UUID | None = None,
    connection: Connection | None = None,
    interrupt: InterruptAfter | None = None,
    retry_count: int | None = None,
    max_retries: int | None = None,
    created_by: UUID | None = None,
    batch_id: UUID | None = None,
    job_id: UUID | None = None,
    jitter: float = 0.0,
) -> InlineRun[R]:
    """Run ``handler`` here and now, on ``payload`` as it comes out of the store, and say how its job would end.

    Nothing is written: ``apply_effects`` does that. ``attempt`` 2 and later have as many retries behind them unless
    ``retry_count`` says otherwise (stalls and snoozes raise the attempt, and cost no retry). ``connection`` is what
    ``ctx.connection()`` yields; it should be in autocommit, as the pool's are. ``jitter``, -1 to 1, places the delay
    of a retry within its spread. Raises TestingKitMisuse, and nothing of the handler's own.
    """
    job_type = handler.job_type
    now = datetime.now(UTC)
    policy = job_type.policy
    given = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else dict(payload)
    claimed = ClaimedJob(
        id=job_id or ids.new_uuid(),
        org_id=org_id or ids.new_uuid(),
        created_by=created_by,
        type=job_type.name,
        queue=job_type.queue,
        priority=Priority.NORMAL.value,
        attempt=attempt,
        max_retries=policy.max_retries if max_retries is None else max_retries,
        retry_count=attempt - 1 if retry_count is None else retry_count,
        stall_count=0,
        crash_count=0,
        time_limit=policy.time_limit,
        batch_id=batch_id,
        payload=as_stored(given),
        created_at=now,
        run_at=now,
        started_at=now,
        event_seq=2,
        concurrency_key=None,
        has_followers=batch_id is not None,
    )
    context = InlineContext(claimed, given=connection, interrupt=interrupt)
    return cast(InlineRun[R], execute(handler, context, jitter))


def execute(handler: Handler[Any, Any], context: InlineContext, jitter: float) -> InlineRun[Any]:
    """One attempt. Raises TestingKitMisuse only."""
    done: Done[BaseModel] | None = None
    raised: BaseException | None = None
    try:
        done = _attempt(handler, context)
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, KeyboardInterrupt):  # whoever runs the tests
            raise
        raised = e
    except BaseException as e:
        raised = e
    if context.misuse is not None:
        raise context.misuse
    # Stopping what a handler waits for makes it fail in its own way: the reason is what counts.
    exception = (context.reason or raised) if raised is not None else None
    ended: Ended
    outcome = None
    if isinstance(exception, JobCancelled) or isinstance(context.reason, JobCancelled):
        ended = "cancelled"  # also where the handler swallowed it: the fence refuses the result
    elif isinstance(exception, LeaseLost) or isinstance(context.reason, LeaseLost):
        ended = "lost"
    else:
        ended_so = _Ended(context.claimed, handler, done, exception)
        outcome = verdict.decide(ended_so, spread=lambda: jitter, report=_told_by_the_run)
        assert outcome is not None  # the two of which nothing is written are above
        ended = cast(Ended, outcome.kind.value)
    completed = ended == "completed" and done is not None
    return InlineRun(
        job=context.claimed,
        ended=ended,
        outcome=outcome,
        result=done.result if completed and done is not None else None,
        exception=raised,
        progress=context.steps,
        logs=context.logs,
        effects=done.effects if completed and done is not None else (),
    )


def _attempt(handler: Handler[Any, Any], context: InlineContext) -> Done[BaseModel]:
    job_type = handler.job_type
    try:
        payload = job_type.payload.model_validate(context.claimed.payload)
    except ValidationError as e:
        fields = sorted({".".join(str(p) for p in x["loc"]) for x in e.errors(include_input=False)})
        raise PermanentError(
            "job.invalid_payload", "The job's payload does not fit its type.", fields=fields[:20]
        ) from None
    context.begin()
    result = handler.run(context, payload)
    done: Done[BaseModel] = result if isinstance(result, Done) else Done(result)
    if not isinstance(done.result, job_type.result):
        raise PermanentError(
            "job.invalid_result", "The work was done, but its result is not what this kind of job yields."
        )
    return done


def judge(handler: Handler[Any, Any], job: ClaimedJob, e: BaseException, jitter: float) -> Outcome:
    """The outcome of a run whose effects could not be written: tried again by the policy, or failed."""
    return verdict.judge(_Ended(job, handler), e, spread=lambda: jitter, report=_told_by_the_run)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A verdict.Attempt."""

    claimed: ClaimedJob
    handler: Handler[Any, Any]
    result: Done[BaseModel] | None = None
    exception: BaseException | None = None


def _told_by_the_run(job: ClaimedJob, e: BaseException) -> None:
    """A surprise is in InlineRun.exception."""
