"""PgQueuer on asyncpg and uvloop, as in its own benchmark. Run as a module, it is a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from bench.engine.ground import Place
from bench.engine.systems.base import Client, System, module_command

__all__ = ["PgQueuerSystem"]

_BATCH = 1000


class PgQueuerClient(Client):
    def __init__(self, place: Place, watch: psycopg.Connection[Any]) -> None:
        self._place = place
        self._watch = watch

    def load(self, jobs: int, seconds: float = 0.0) -> None:
        asyncio.run(self._enqueue(jobs, seconds))
        self._watch.execute("analyze")

    async def _enqueue(self, jobs: int, seconds: float) -> None:
        connection = await asyncpg.connect(self._place.database_url)
        queries = Queries(AsyncpgDriver(connection))
        for first in range(0, jobs, _BATCH):
            many = min(_BATCH, jobs - first)
            await queries.enqueue(["bench"] * many, [str(seconds).encode()] * many, [0] * many)
        await connection.close()

    def unfinished(self) -> bool:
        return self._watch.execute("select 1 from pgqueuer limit 1").fetchone() is not None  # ended jobs leave it

    def ended_at(self) -> float:
        row = self._watch.execute(
            "select extract(epoch from max(created)) from pgqueuer_log where status = 'successful'"
        ).fetchone()
        assert row is not None
        return float(row[0])

    def verify(self, jobs: int) -> None:
        row = self._watch.execute("select count(*) from pgqueuer_log where status = 'successful'").fetchone()
        if row != (jobs,):
            raise RuntimeError(f"PgQueuer: {row} of {jobs} jobs succeeded")

    def one(self) -> None:
        raise NotImplementedError("its log is written in batches of 0.1 s: latency is no aim of it")


class PgQueuerSystem(System):
    schema = "pgqueuer"

    def __init__(self, batch: int, threads: bool = False) -> None:
        self.name = f"PgQueuer {batch}{' in threads' if threads else ''}"
        self._batch = batch
        self._threads = threads
        where = "asyncio.to_thread" if threads else "on the event loop"
        self.setting = f"2 processes, batch size {batch}, asyncpg, uvloop, jobs {where}"

    def install(self, database_url: str) -> None:
        async def install() -> None:
            connection = await asyncpg.connect(database_url)
            await Queries(AsyncpgDriver(connection)).install()
            await connection.close()

        asyncio.run(install())

    def commands(self, processes: int) -> list[list[str]]:
        arguments = (str(self._batch), *(["threads"] if self._threads else []))
        return [module_command("bench.engine.systems.pgqueuer_peer", *arguments)] * processes

    @contextmanager
    def client(self, place: Place) -> Iterator[PgQueuerClient]:
        with psycopg.connect(place.database_url, autocommit=True, prepare_threshold=1) as watch:
            yield PgQueuerClient(place, watch)


async def _work(batch: int, threads: bool) -> None:
    manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(os.environ["DATABASE_URL"])))

    @manager.entrypoint("bench")
    async def bench(job: Job) -> None:
        seconds = float(job.payload or 0)
        if threads:
            await asyncio.to_thread(time.sleep, seconds)  # how its documentation runs functions that may block
        elif seconds:
            await asyncio.sleep(seconds)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
    await manager.run(batch_size=batch)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ["LOG_LEVEL"])
    uvloop.run(_work(int(sys.argv[1]), sys.argv[2:] == ["threads"]))
