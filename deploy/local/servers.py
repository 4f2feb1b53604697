"""PostgreSQL and Valkey for the test-suite: ``with embedded_servers(tmp_path) as servers: …``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.local.embedded import Say
from deploy.local.guard import Guard
from deploy.local.postgres import Postgres
from deploy.local.valkey import Valkey

__all__ = ["EmbeddedServers", "embedded_servers"]


class EmbeddedServers:
    """Both servers, running. Addresses stay the same through every stop and start. Use from one thread at a time."""

    def __init__(self, postgres: Postgres, valkey: Valkey, guard: Guard) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self._guard = guard

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def postgres_pid(self) -> int:
        return self.postgres.pid

    @property
    def valkey_pid(self) -> int:
        return self.valkey.pid

    def stop_postgres(self, *, kill: bool = False) -> None:
        """Stops it, as orderly as SIGINT is (open sessions are cut off), or by SIGKILL."""
        _stop(self.postgres, kill)
        self._protect()

    def start_postgres(self) -> None:
        """Starts it on the same data and waits until it answers."""
        self.postgres.start()
        self._protect()

    def restart_postgres(self, *, kill: bool = False) -> None:
        self.stop_postgres(kill=kill)
        self.start_postgres()

    def stop_valkey(self, *, kill: bool = False) -> None:
        _stop(self.valkey, kill)
        self._protect()

    def start_valkey(self, *, empty: bool = False) -> None:
        """Starts it with what it held, or with nothing, and waits until it answers."""
        if empty:
            self.valkey.wipe()
        self.valkey.start()
        self._protect()

    def restart_valkey(self, *, kill: bool = False, empty: bool = False) -> None:
        self.stop_valkey(kill=kill)
        self.start_valkey(empty=empty)

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    def _protect(self) -> None:
        self._guard.protect([(self.valkey,), (self.postgres,)])


@contextmanager
def embedded_servers(
    folder: Path, *, durable: bool = False, keep: bool = False, say: Say | None = None
) -> Iterator[EmbeddedServers]:
    """Both servers on ``folder``, stopped on leaving, and their data deleted unless ``keep`` (the logs stay).

    Deleted by us, because as root the cluster may have to lie outside ``folder``. Should this process be killed, its
    guard stops the servers. ``durable=False`` is faster; data then survive kill -9 but not a power cut. Raises
    FolderBusy when the folder is in use.
    """
    with ExitStack() as stack:
        guard = Guard()
        stack.callback(guard.close)
        valkey = Valkey(folder / "valkey", folder / "valkey.log", durable=durable, say=say or _to_stderr)
        postgres = Postgres(folder / "postgres", folder / "postgres.log", durable=durable, say=say or _to_stderr)
        valkey.open()
        if not keep:
            stack.callback(valkey.discard)
        stack.callback(valkey.close)
        valkey.launch()
        guard.protect([(valkey,)])
        postgres.open()
        if not keep:
            stack.callback(postgres.discard)
        stack.callback(postgres.close)
        servers = EmbeddedServers(postgres, valkey, guard)
        postgres.launch()
        guard.protect([(valkey,), (postgres,)])
        postgres.wait_ready()
        valkey.wait_ready()
        yield servers


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _stop(server: Postgres | Valkey, kill: bool) -> None:
    if kill:
        server.kill_group()
        _await_silence(server)
    else:
        server.stop()


def _await_silence(server: Postgres | Valkey) -> None:
    """Until the port is shut: a killed postmaster's children take a moment to notice."""
    deadline = time.monotonic() + 10
    while server.ready() and time.monotonic() < deadline:
        time.sleep(0.01)
