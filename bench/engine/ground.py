"""The servers of a run, and a fresh place on them for each round of each system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import redis

from bench.stack import ROOT
from deploy.local.servers import EmbeddedServers

if TYPE_CHECKING:
    from bench.engine.systems.base import System

__all__ = ["Ground", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """One system's own database and Redis database."""

    database_url: str
    redis_url: str
    folder: Path

    def environment(self, **extra: str) -> dict[str, str]:
        """What a worker process of any system is started with. Nothing of the caller's own environment gets in."""
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "STORAGE_DIR": str(self.folder / "storage"),
            "SECRET_KEY": "a-secret-key-for-benchmarks-only-0123456789",
            "LOG_LEVEL": "WARNING",
            **extra,
        }


class Ground:
    """Both servers. Each system's schema is made once a run, as a template, and copied for every round."""

    def __init__(self, servers: EmbeddedServers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self._templates: dict[str, str] = {}

    @contextmanager
    def fresh(self, system: System, *, redis_database: int = 0) -> Iterator[Place]:
        """An empty Redis database and a Postgres database with the system's schema and nothing in it.

        The Postgres database is dropped on leaving. Rounds that run at once need a ``redis_database`` each.
        """
        name = f"bench_{uuid4().hex}"
        redis_url = urlunsplit(urlsplit(self.servers.redis_url)._replace(path=f"/{redis_database}"))
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        place = Place(self._named(name), redis_url, self.folder)
        with self._admin() as conn:
            conn.execute(f"create database {name} template {self._template(system)}")
        try:
            yield place
        finally:
            with self._admin() as conn:
                conn.execute(f"drop database {name} with (force)")

    def _template(self, system: System) -> str:
        if system.schema not in self._templates:
            name = f"template_{system.schema}"
            with self._admin() as conn:
                conn.execute(f"create database {name}")
            system.install(self._named(name))
            self._templates[system.schema] = name
        return self._templates[system.schema]

    def _named(self, database: str) -> str:
        return urlunsplit(urlsplit(self.servers.database_url)._replace(path=f"/{database}"))

    def _admin(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.servers.database_url, autocommit=True)
