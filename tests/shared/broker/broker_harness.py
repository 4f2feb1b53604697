"""Job types, handlers and a worker for the tests of the broker. ``python broker_harness.py`` is a worker process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import Field

from shared import ids
from shared.broker import Publisher, WakeBroker, WorkerDeps, WorkerProcess, make_redis
from shared.contracts import Contract, JobType, Policy, Registry
from shared.db import SyncPool
from shared.jobs import Done, Handler, JobContext, NewJob, PermanentError, RetryableError, Snooze, submit
from shared.settings import Settings
from shared.storage import from_settings

SECRET = "Emma Smith wrote that photosynthesis is magic"


class Payload(Contract):
    do: str = "nothing"
    seconds: float = 0.0
    data: dict[str, Any] = Field(default_factory=dict)


class Result(Contract):
    value: str = "ok"


TEST = JobType(
    "test.job", "test", Payload, Result, title="Test", policy=Policy(max_retries=2, backoff_base=0.05, time_limit=30)
)
UNHANDLED = JobType("test.unhandled", "test", Payload, Result, title="No handler")
REGISTRY = Registry()
REGISTRY.declare(TEST)
REGISTRY.declare(UNHANDLED)


class Stage:
    """Where the handler of one test meets it: what it did, and what it waits for."""

    def __init__(self) -> None:
        self.ran: list[tuple[UUID, int]] = []
        self.began = threading.Event()
        self.go = threading.Event()
        self.acts: dict[str, Callable[[JobContext, Payload], Any]] = {}
        self.notes: list[Any] = []

    def handler(self) -> Handler[Payload, Result]:
        return Handler(TEST, self.run)

    def run(self, ctx: JobContext, payload: Payload) -> Any:
        self.ran.append((ctx.job.id, ctx.job.attempt))
        self.began.set()
        act = self.acts.get(payload.do) or getattr(self, f"do_{payload.do}")
        return act(ctx, payload) or Result()

    def do_nothing(self, ctx: JobContext, payload: Payload) -> None: ...

    def do_spin(self, ctx: JobContext, payload: Payload) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pass

    def do_nap(self, ctx: JobContext, payload: Payload) -> None:
        """Asleep in short stretches, as Python code that waits mostly is."""
        deadline = time.monotonic() + (payload.seconds or 20)
        while time.monotonic() < deadline and not self.go.is_set():
            time.sleep(0.005)

    def do_sleep(self, ctx: JobContext, payload: Payload) -> None:
        """One sleep, which nothing can interrupt."""
        time.sleep(payload.seconds or 8)

    def do_child(self, ctx: JobContext, payload: Payload) -> None:
        child = subprocess.Popen(["sleep", "20"])
        self.notes.append(child)
        with ctx.on_interrupt(child.kill):
            code = child.wait()
        raise RetryableError("test.child", f"the child ended with {code}")

    def do_report(self, ctx: JobContext, payload: Payload) -> None:
        for n in range(int(payload.data["times"])):
            ctx.progress(n, "counting")
            ctx.log("counted", n=n)

    def do_retry(self, ctx: JobContext, payload: Payload) -> None:
        raise RetryableError("test.busy", "Busy.", retry_after=payload.data.get("retry_after"))

    def do_fail(self, ctx: JobContext, payload: Payload) -> None:
        raise PermanentError("test.never", "Never.", pages=3)

    def do_snooze(self, ctx: JobContext, payload: Payload) -> None:
        if ctx.job.attempt <= 3:
            raise Snooze(0.01, "not yet")

    def do_crash(self, ctx: JobContext, payload: Payload) -> None:
        raise ValueError(SECRET)

    def do_effects(self, ctx: JobContext, payload: Payload) -> Done[Result]:
        def write(conn: Any) -> None:
            conn.execute("insert into organisations (id, name) values (%s, 'effect')", (ids.new_uuid(),))

        return Done(Result(), effects=(write, *self.notes))


@contextmanager
def worker(settings: Settings, stage: Stage, *, concurrency: int = 2, grace: float = 3.0) -> Iterator[WorkerProcess]:
    process = WorkerProcess(
        "test", {TEST.name: stage.handler()}, WorkerDeps(settings, from_settings(settings)), concurrency=concurrency
    )
    process.start()
    try:
        yield process
    finally:
        stage.go.set()
        process.stop(grace)
        logging.getLogger("dramatiq.worker.WorkerThread").setLevel(logging.NOTSET)  # a worker quietens it


class Client:
    """Submits test jobs and looks at what became of them."""

    def __init__(self, pool: SyncPool, redis_url: str, org_id: UUID) -> None:
        self.pool = pool
        self.redis = make_redis(redis_url)
        self.publisher = Publisher(WakeBroker(self.redis)).start()
        self.org_id = org_id

    def submit(self, do: str = "nothing", *, wake: bool = True, **fields: Any) -> UUID:
        payload = {"do": do, "seconds": fields.pop("seconds", 0.0), "data": fields.pop("data", {})}
        return self.submit_all([payload], wake=wake, **fields)[0]

    def submit_all(self, payloads: Sequence[dict[str, Any]], *, wake: bool = True, **fields: Any) -> list[UUID]:
        fields.setdefault("type", TEST.name)
        jobs = [NewJob(id=ids.new_uuid(), payload=p, org_id=self.org_id, **fields) for p in payloads]
        with self.pool.connection() as conn:
            accepted = submit(conn, jobs, REGISTRY)
        if wake:
            self.publisher.wake(accepted.wakes)
        return [job.id for job in jobs]

    def row(self, id: UUID) -> dict[str, Any]:
        with self.pool.connection() as conn:
            found = conn.execute("select * from jobs where id = %s", (id,)).fetchone()
        assert found is not None
        return found

    def status(self, id: UUID) -> str:
        return str(self.row(id)["status"])

    def events(self, id: UUID) -> list[dict[str, Any]]:
        """In order, and without a gap."""
        with self.pool.connection() as conn:
            rows = conn.execute("select * from job_events where job_id = %s order by seq", (id,)).fetchall()
        assert [r["seq"] for r in rows] == list(range(1, len(rows) + 1)), "sequence numbers have no gap"
        return rows

    def kinds(self, id: UUID) -> list[str]:
        return [e["kind"] for e in self.events(id) if e["kind"] not in ("progress", "log")]

    def undone(self) -> int:
        with self.pool.connection() as conn:
            row = conn.execute("select count(*) as n from jobs where status in ('queued', 'processing')").fetchone()
        assert row is not None
        return int(row["n"])

    def ended_once(self, id: UUID, status: str = "completed") -> bool:
        kinds = self.kinds(id)
        return kinds.count(status) == 1 and kinds[-1] == status and self.status(id) == status

    def close(self) -> None:
        self.publisher.close()
        self.redis.close()


def spawn(settings: Settings, *args: str, **env: str) -> subprocess.Popen[str]:
    """A worker process of this file, with the settings of a test."""
    secrets = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "SECRET_KEY": settings.secret_key,
    }
    plain = ("lease_seconds", "heartbeat_seconds", "shutdown_grace_seconds", "storage_dir")
    return subprocess.Popen(
        [sys.executable, __file__, *args],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            **{name: value.get_secret_value() for name, value in secrets.items()},
            **{name.upper(): str(getattr(settings, name)) for name in plain},
            **env,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    from shared.telemetry import logging as our_logging

    own = Settings()
    our_logging.configure(own, "test")
    WorkerProcess("test", {TEST.name: Stage().handler()}, WorkerDeps(own, from_settings(own)), concurrency=2).serve()
