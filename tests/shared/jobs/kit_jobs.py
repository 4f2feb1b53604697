"""A job type to try the testing kit on, and handlers that end in every way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from shared import ids
from shared.contracts import Contract, JobType, Policy, Registry
from shared.jobs import (
    Handler,
    JobContext,
    NewJob,
    RetryableError,
)

SECRET = "Emma Smith wrote that photosynthesis is magic"


class Payload(Contract):
    n: int = 0
    owner: UUID | None = None


class Result(Contract):
    n: int = 0


KIT = JobType("kit.job", "kit", Payload, Result, title="Kit", policy=Policy(max_retries=2, backoff_base=8, jitter=0.5))
OTHER = JobType("kit.other", "other", Payload, Result, title="Other")
REGISTRY = Registry()
REGISTRY.declare(KIT)
REGISTRY.declare(OTHER)
Act = Callable[[JobContext, Payload], Any]


def handler(act: Act) -> Handler[Payload, Result]:
    return Handler(KIT, act)


def job(n: int = 0, **fields: Any) -> NewJob:
    return NewJob(**{"id": ids.new_uuid(), "type": KIT.name, "payload": {"n": n}, "org_id": uuid4(), **fields})


def fine(ctx: JobContext, payload: Payload) -> Result:
    return Result(n=payload.n + 1)


def raising(e: BaseException) -> Act:
    def act(ctx: JobContext, payload: Payload) -> Result:
        raise e

    return act


def returning(value: Any) -> Act:
    return lambda ctx, payload: value


class Unstorable(Result):
    def model_dump(self, **_: Any) -> Any:
        raise ValueError(SECRET)


def leaning(ctx: JobContext, payload: Payload) -> Result:
    """Reports thrice, and is none too polite about being stopped."""
    try:
        for percent in (10, 50, 30):
            ctx.progress(percent, f"step {percent}")
    except BaseException:
        raise RetryableError("kit.stopped", "What it waited for went away.") from None
    return Result()


def swallowing(ctx: JobContext, payload: Payload) -> Result:
    try:
        leaning(ctx, payload)
    except Exception:
        with contextlib.suppress(BaseException):
            ctx.log("carried on")
    return Result(n=7)


def logging(ctx: JobContext, payload: Payload) -> Result:
    ctx.log("read", pages=3, owner=payload.owner, student_name=SECRET, text=SECRET, many=list(range(5)), size=1.5)
    return Result()
