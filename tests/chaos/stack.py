"""The system under test: own PostgreSQL and Valkey, three workers, three schedulers, a gateway and a grading worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg.rows import dict_row

from deploy.local.ports import LOOPBACK
from deploy.local.servers import EmbeddedServers, embedded_servers
from deploy.local.services import REPOSITORY
from services.api.auth import ALL_SCOPES
from services.api.keys import new_key
from shared import ids
from shared.broker import NAMESPACE, make_redis
from shared.db.migrate import migrate
from tests.chaos import kinds
from tests.chaos.fleet import Fleet, Member

__all__ = ["LEASE_SECONDS", "ChaosStack", "Connection", "chaos_stack"]

LEASE_SECONDS = 2.5
_CONCURRENCY = 4
_TIMES = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "HEARTBEAT_SECONDS": "0.3",
    "RESCUE_SECONDS": "0.5",
    "REWAKE_SECONDS": "0.5",
    "SHUTDOWN_GRACE_SECONDS": "3",
    "WORKER_CONCURRENCY": str(_CONCURRENCY),
    "WORKER_START_RATE": "0",
    "API_WORKERS": "1",
}
_OUR_SESSIONS = "select application_name from pg_stat_activity where application_name like 'gradeline%'"
Connection = psycopg.Connection[dict[str, Any]]


class ChaosStack:
    """The servers and the fleet. ``servers_lock`` is held by whoever stops or starts a server."""

    def __init__(self, servers: EmbeddedServers, folder: Path, workers: int, schedulers: int) -> None:
        self.servers = servers
        self.servers_lock = threading.RLock()
        self.roster = folder / "roster"  # worker id → process id
        self.roster.mkdir(parents=True, exist_ok=True)
        self.duplicating = threading.Event()  # whoever submits rings five times
        self.redis: redis.Redis = make_redis(servers.redis_url)
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SECRET_KEY": "a-secret-key-for-chaos-only-0123456789abcdef",
            "STORAGE_DIR": str(folder / "storage"),
            "CHAOS_ROSTER": str(self.roster),
            "TMPDIR": str(folder),
            "MALLOC_ARENA_MAX": "2",
            **_TIMES,
        }
        rows = [(f"worker{n}", "worker", "tests.chaos.worker", "HEALTH_PORT") for n in range(1, workers + 1)]
        rows += [(f"scheduler{n}", "scheduler", "services.scheduler", "HEALTH_PORT") for n in range(1, schedulers + 1)]
        rows += [
            ("gateway", "gateway", "services.api", "PORT"),
            ("grading", "grading", "services.grading_worker", "HEALTH_PORT"),
        ]
        self.fleet = Fleet([Member(n, role, module, self._env, folder / "logs", p) for n, role, module, p in rows])
        self.org_id = ids.new_uuid()  # of the gateway's callers
        self.key = new_key(ids.new_uuid())

    @property
    def gateway_url(self) -> str:
        return f"http://{LOOPBACK}:{self.fleet.of('gateway')[0].port}/api/v1"

    @property
    def queue_key(self) -> str:
        """The Redis list of the chaos queue's wake-ups; their bodies are in the hash named the same and ``.msgs``."""
        return f"{NAMESPACE}:{kinds.QUEUE}"

    def start(self) -> None:
        migrate(self.servers.database_url)
        member = ids.new_uuid()
        with self.connect() as conn:
            conn.execute(kinds.EFFECTS_TABLE)
            conn.execute("insert into organisations (id, name) values (%s, 'Chaos School')", (self.org_id,))
            conn.execute(
                "insert into members (id, org_id, email, name, role) values (%s, %s, 'a@b.example', 'A', 'admin')",
                (member, self.org_id),
            )
            conn.execute(
                "insert into api_keys (id, org_id, member_id, name, hash, scopes) values (%s, %s, %s, 'chaos', %s, %s)",
                (self.key.id, self.org_id, member, self.key.hash, list(ALL_SCOPES)),
            )
        self.fleet.start()

    def stop(self) -> None:
        """Every process by SIGTERM. Whatever is left of them afterwards is added to ``fleet.leftovers``."""
        self.fleet.stop()
        self.redis.close()
        deadline = time.monotonic() + 3
        with self.connect() as conn:
            while rows := conn.execute(_OUR_SESSIONS).fetchall():
                if time.monotonic() > deadline:
                    self.fleet.leftovers.append(f"sessions left behind: {[r['application_name'] for r in rows]}")
                    break
                time.sleep(0.05)

    def connect(self, name: str = "chaos-harness") -> Connection:
        """A connection of the harness's own, in autocommit. Raises psycopg.OperationalError while Postgres is away."""
        return psycopg.connect(
            self.servers.database_url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=3,
            application_name=name,
        )

    def pid_of(self, worker_id: str) -> int | None:
        """The process of a worker id: by its file, or for other services' workers by the table of workers."""
        try:
            return int((self.roster / worker_id).read_text())
        except (OSError, ValueError):
            pass
        with self.connect() as conn:
            row = conn.execute("select pid from workers where id::text = %s", (worker_id,)).fetchone()
        return row["pid"] if row else None

    def restart_postgres(self, how: signal.Signals, away: float) -> None:
        """Ends the postmaster by SIGINT (fast) or SIGQUIT (immediate, as by a crash); back after ``away`` seconds."""
        with self.servers_lock, self.fleet.log.lasting(f"postgres {how.name}", "postgres", self.servers.postgres_pid):
            os.kill(self.servers.postgres_pid, how)
            while self.servers.postgres.running:
                time.sleep(0.01)
            time.sleep(away)
            self.servers.start_postgres()

    def forget(self) -> None:
        """Empties the tables of jobs, so that many runs in one database do not slow each other."""
        with self.connect() as conn:
            conn.execute(
                "truncate jobs, job_events, job_dependencies, batches, chaos_effects, gradings, idempotency_keys"
            )

    @property
    def most_sessions_a_worker(self) -> int:
        """One a thread, one to spare, the heartbeat's; and one that a pool may be replacing just then."""
        return _CONCURRENCY + 3


@contextmanager
def chaos_stack(folder: Path, *, workers: int = 3, schedulers: int = 3) -> Iterator[ChaosStack]:
    """The whole system on ``folder``, up and well; stopped on leaving."""
    with embedded_servers(folder / "servers") as servers:
        stack = ChaosStack(servers, folder, workers, schedulers)
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()
