"""The chaos job: one type whose payload says how it behaves. Known to the workers and to who submits."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Literal

from shared.contracts import Contract, JobType, Policy, Registry
from shared.jobs import Done, Handler, JobContext, PermanentError, RetryableError, Snooze

__all__ = ["CHAOS", "EFFECTS_TABLE", "QUEUE", "REGISTRY", "ChaosPayload", "ChaosResult", "handler"]

QUEUE = "chaos"
# No unique constraint, so that an effect written twice shows as two rows.
EFFECTS_TABLE = """
create table if not exists chaos_effects (
  job_id uuid not null, attempt int not null, worker_pid int not null, at timestamptz not null default now()
)
"""
_INSERT_EFFECT = "insert into chaos_effects (job_id, attempt, worker_pid) values (%s, %s, %s)"

Act = Literal[
    "work", "flaky", "retry_after", "snooze", "progress", "permanent", "exhausted", "broken_effect", "suicide"
]


class ChaosPayload(Contract):
    """What the job does. ``effect``: it writes one row into chaos_effects, in the transaction that completes it."""

    act: Act = "work"
    seconds: float = 0.0
    effect: bool = False


class ChaosResult(Contract):
    attempt: int


CHAOS = JobType(
    "chaos.job",
    QUEUE,
    ChaosPayload,
    ChaosResult,
    title="Chaos",
    policy=Policy(max_retries=2, backoff_base=0.1, backoff_max=0.5, time_limit=30),
)
REGISTRY = Registry()
REGISTRY.declare(CHAOS)


def handler() -> Handler[ChaosPayload, ChaosResult]:
    return Handler(CHAOS, run)


def run(ctx: JobContext, payload: ChaosPayload) -> Done[ChaosResult]:
    """Does as the payload says. Decides by the job's own counters, never by what this process remembers."""
    _act(ctx, payload)
    _nap(payload.seconds)
    attempt = ctx.job.attempt

    def write(conn: Any) -> None:
        conn.execute(_INSERT_EFFECT, (ctx.job.id, attempt, os.getpid()))

    def refuse(conn: Any) -> None:
        raise RetryableError("chaos.effect", "The effect failed after it had written its row.")

    effects: tuple[Any, ...] = (write,) if payload.effect else ()
    if payload.act == "broken_effect" and ctx.job.retry_count == 0:
        effects = (write, refuse)  # the row must go with the transaction
    return Done(ChaosResult(attempt=attempt), effects=effects)


def _act(ctx: JobContext, payload: ChaosPayload) -> None:
    match payload.act:
        case "flaky" if ctx.job.retry_count == 0:
            raise RetryableError("chaos.flaky", "Fails the first time.")
        case "retry_after" if ctx.job.retry_count == 0:
            raise RetryableError("chaos.busy", "The provider says when.", retry_after=0.3)
        case "exhausted":
            raise RetryableError("chaos.exhausted", "Fails every time.")
        case "permanent":
            raise PermanentError("chaos.permanent", "Trying again cannot help.")
        case "snooze" if ctx.job.attempt == 1:
            raise Snooze(0.2, "too early")
        case "progress":
            for n in range(5):
                ctx.progress(n * 20, f"step {n}")
                _nap(0.01)
            ctx.log("counted", n=5)
        case "suicide":
            _nap(0.05)
            os.kill(os.getpid(), signal.SIGKILL)


def _nap(seconds: float) -> None:
    """In short stretches, so that a cancellation interrupts it as it does most Python code."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))
