"""Procrastinate on psycopg 3, with an async task. Run as a module, it is a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import procrastinate
import psycopg

from bench.engine.ground import Place
from bench.engine.systems.base import Client, System, module_command, spin_until

__all__ = ["Procrastinate"]

_BATCH = 1000


def make_app(connector: procrastinate.BaseConnector) -> procrastinate.App:
    app = procrastinate.App(connector=connector)

    @app.task(name="bench")
    async def bench(seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)

    return app


class ProcrastinateClient(Client):
    def __init__(self, app: procrastinate.App, watch: psycopg.Connection[Any]) -> None:
        self._task: Any = app.tasks["bench"]
        self._watch = watch

    def load(self, jobs: int, seconds: float = 0.0) -> None:
        for first in range(0, jobs, _BATCH):
            self._task.batch_defer(*({"seconds": seconds} for _ in range(min(_BATCH, jobs - first))))
        self._watch.execute("analyze")

    def unfinished(self) -> bool:
        query = "select 1 from procrastinate_jobs where status = %s::procrastinate_job_status limit 1"
        return any(self._watch.execute(query, (status,)).fetchone() for status in ("todo", "doing"))

    def ended_at(self) -> float:
        row = self._watch.execute(
            "select extract(epoch from max(at)) from procrastinate_events where type = 'succeeded'"
        ).fetchone()
        assert row is not None
        return float(row[0])

    def verify(self, jobs: int) -> None:
        row = self._watch.execute("select count(*) from procrastinate_jobs where status = 'succeeded'").fetchone()
        if row != (jobs,):
            raise RuntimeError(f"Procrastinate: {row} of {jobs} jobs succeeded")

    def one(self) -> None:
        id = self._task.defer(seconds=0.0)
        query = "select status::text from procrastinate_jobs where id = %s"
        spin_until(lambda: self._watch.execute(query, (id,)).fetchone() == ("succeeded",))


class Procrastinate(System):
    name = "Procrastinate"
    schema = "procrastinate"

    def __init__(self, concurrency: int = 4) -> None:
        """``concurrency`` of each process; of 4, 8 and 20 four is fastest on two cores, and costs least CPU a job."""
        self._concurrency = concurrency
        self.setting = f"2 processes, concurrency {concurrency}, async task, listen_notify, pool of the same size"

    def install(self, database_url: str) -> None:
        app = make_app(procrastinate.SyncPsycopgConnector(conninfo=database_url))
        with app.open():
            app.schema_manager.apply_schema()

    def commands(self, processes: int) -> list[list[str]]:
        return [module_command("bench.engine.systems.procrastinate_peer", str(self._concurrency))] * processes

    @contextmanager
    def client(self, place: Place) -> Iterator[ProcrastinateClient]:
        app = make_app(procrastinate.SyncPsycopgConnector(conninfo=place.database_url))
        with app.open(), psycopg.connect(place.database_url, autocommit=True, prepare_threshold=1) as watch:
            watch.execute("set enable_seqscan = off")
            yield ProcrastinateClient(app, watch)


async def _work(concurrency: int) -> None:
    # One connection listens; each job in flight may want one.
    connector = procrastinate.PsycopgConnector(
        conninfo=os.environ["DATABASE_URL"], min_size=concurrency, max_size=concurrency + 2
    )
    app = make_app(connector)
    async with app.open_async():
        await app.run_worker_async(concurrency=concurrency)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ["LOG_LEVEL"])
    asyncio.run(_work(int(sys.argv[1])))
