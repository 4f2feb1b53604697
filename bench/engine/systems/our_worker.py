"""The job type that is measured, and a worker process for it: ``python -m bench.engine.systems.our_worker``.

Nothing that only producers need is imported here, so that its memory is that of any service's worker.
"""

from __future__ import annotations

import time

import redis

from shared.broker import WorkerDeps, WorkerProcess
from shared.contracts import Contract, JobType, Policy, Registry
from shared.jobs import Handler, JobContext
from shared.settings import Settings
from shared.storage import from_settings
from shared.telemetry import logging

__all__ = ["JOB", "REGISTRY"]


class Payload(Contract):
    seconds: float = 0.0
    mark: str = ""  # a Redis list that gets the time of the start


class Result(Contract):
    pass


REGISTRY = Registry()
JOB = REGISTRY.declare(
    JobType("bench.job", "bench", Payload, Result, title="Bench", policy=Policy(max_retries=2, time_limit=600))
)


def main() -> None:
    settings = Settings()
    logging.configure(settings, "bench")
    marks = redis.Redis.from_url(settings.redis_url.get_secret_value())

    def run(ctx: JobContext, payload: Payload) -> Result:
        if payload.mark:
            marks.rpush(payload.mark, time.time())
        if payload.seconds:
            time.sleep(payload.seconds)
        return Result()

    deps = WorkerDeps(settings, from_settings(settings))
    WorkerProcess("bench", {JOB.name: Handler(JOB, run)}, deps).serve()


if __name__ == "__main__":
    main()
