"""Celery on Redis with a Postgres result backend and ``task_track_started``. Run as a module, it is a worker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import redis
from celery import Celery

from bench.engine.ground import Place
from bench.engine.systems.base import Client, System, module_command, spin_until
from shared.db.migrate import sqlalchemy_url

__all__ = ["CeleryPostgres"]


def make_app(database_url: str, redis_url: str) -> Celery:
    app = Celery("bench", broker=redis_url, backend=f"db+{sqlalchemy_url(database_url)}")
    app.conf.update(
        task_track_started=True,
        result_extended=True,  # the task's name, worker and retries, as our job rows have
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )

    @app.task(name="bench", shared=False)  # of this app only: another round makes another
    def bench(seconds: float, mark: str = "") -> dict[str, Any]:
        if mark:
            with redis.Redis.from_url(redis_url) as marks:
                marks.rpush(mark, time.time())
        if seconds:
            time.sleep(seconds)
        return {}

    return app


class CeleryClient(Client):
    def __init__(self, app: Celery, watch: psycopg.Connection[Any]) -> None:
        self._task = app.tasks["bench"]
        self._watch = watch
        self._sent = 0

    def load(self, jobs: int, seconds: float = 0.0) -> None:
        for _ in range(jobs):
            self._task.delay(seconds)
        self._sent += jobs

    def unfinished(self) -> bool:
        return self._succeeded() < self._sent

    def ended_at(self) -> float:
        row = self._watch.execute(
            "select extract(epoch from max(date_done at time zone 'utc')) from celery_taskmeta"
        ).fetchone()
        assert row is not None
        return float(row[0])

    def verify(self, jobs: int) -> None:
        if (kept := self._succeeded()) != jobs:
            raise RuntimeError(f"Celery: {kept} of {jobs} tasks succeeded")

    def one(self) -> None:
        id = self._task.delay(0.0).id
        query = "select status from celery_taskmeta where task_id = %s"
        spin_until(lambda: self._watch.execute(query, (id,)).fetchone() == ("SUCCESS",))

    def hold(self, key: str) -> None:
        self._task.delay(300, key)

    def _succeeded(self) -> int:
        # Only what has begun has a row, so those that are left cannot be asked for.
        row = self._watch.execute("select count(*) from celery_taskmeta where status = 'SUCCESS'").fetchone()
        assert row is not None
        return int(row[0])


class CeleryPostgres(System):
    name = "Celery + Postgres"
    schema = "celery"

    def __init__(self, children: int = 1) -> None:
        """``children`` of each worker; of 1, 2, 4 and 8 one is fastest on two cores, and costs least CPU a job."""
        self._children = children
        self.setting = f"2 workers × {children} prefork, task_track_started, result_extended"

    def install(self, database_url: str) -> None:
        app = make_app(database_url, "redis://127.0.0.1:1/0")
        session = app.backend.ResultSession()  # makes the tables
        session.get_bind().dispose()
        session.close()

    def commands(self, processes: int) -> list[list[str]]:
        return [
            module_command("bench.engine.systems.celery_peer", f"--concurrency={self._children}", f"--hostname=w{n}@%h")
            for n in range(processes)
        ]

    @contextmanager
    def client(self, place: Place) -> Iterator[CeleryClient]:
        app = make_app(place.database_url, place.redis_url)
        with psycopg.connect(place.database_url, autocommit=True, prepare_threshold=1) as watch:
            try:
                yield CeleryClient(app, watch)
            finally:
                app.close()


if __name__ == "__main__":
    worker = make_app(os.environ["DATABASE_URL"], os.environ["REDIS_URL"])
    # Without the chatter between workers, which is of no use here and costs CPU.
    quiet = ["--without-gossip", "--without-mingle", f"--loglevel={os.environ['LOG_LEVEL']}"]
    worker.worker_main(["worker", *quiet, *sys.argv[1:]])
