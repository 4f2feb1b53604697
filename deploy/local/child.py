"""A child process in a session of its own, with a log file, that can be stopped with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Child", "Launch", "log_tail"]

_LOG_LIMIT = 16 * 1024 * 1024  # bytes; a longer log is set aside as .1 when the process is started next


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a process. ``uid`` and ``gid`` change the account, which only root can do."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    uid: int | None = None
    gid: int | None = None


class Child(ABC):
    """One process, started again as often as wished under the same name and log.

    The stop signal goes to the process alone, since it knows how to drain its own children. SIGKILL goes to its whole
    group, so that no grandchild is left behind. Methods may be called from any thread, one at a time.
    """

    def __init__(
        self, name: str, log: Path, *, stop_signal: signal.Signals = signal.SIGTERM, grace: float = 30.0
    ) -> None:
        self.name = name
        self.log = log
        self.stop_signal = stop_signal
        self.grace = grace  # seconds between the stop signal and SIGKILL
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def describe(self) -> Launch:
        """What to start; asked before every start."""

    @abstractmethod
    def ready(self) -> bool:
        """One quick look (under a second) at whether the process serves."""

    @property
    def pid(self) -> int:
        """The pid of the latest process, which may have ended. Raises RuntimeError before the first launch."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """As in subprocess: negative for a signal. None while it runs or before the first launch."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        """Starts the process and returns at once. Raises OSError when it cannot be started."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self.kill_group()  # what a crashed predecessor left would hold its port or its files
        how = self.describe()
        with self._open_log() as log:
            self._process = subprocess.Popen(
                how.argv,
                env=dict(how.env),
                cwd=how.cwd,
                stdin=subprocess.DEVNULL,
                stdout=self._stdout(log),
                stderr=log,
                start_new_session=True,
                umask=0o077,
                user=how.uid,
                group=how.gid,
                extra_groups=None if how.uid is None else [],
            )

    def ask_to_stop(self) -> None:
        """Sends the stop signal, and wakes a process that was paused; harmless when it has ended."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)  # polls first: never signals a reused pid
            self._process.send_signal(signal.SIGCONT)

    def kill_group(self) -> None:
        """SIGKILL to whatever is left of the process's group, and reaps it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self, grace: float | None = None) -> None:
        """Stop signal, at most ``grace`` seconds, then SIGKILL to the group. Nothing of it runs afterwards."""
        if self._process is None:
            return
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.grace if grace is None else grace)
        self.kill_group()

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until :meth:`ready`, starting the process anew should it end (a predecessor's last children can make
        that happen). Raises RuntimeError with the end of its log after ``timeout`` seconds or the fifth early end."""
        deadline = time.monotonic() + timeout
        ends = 0
        while not self.ready():
            if not self.running:
                ends += 1
                if ends < 5:
                    time.sleep(0.1 * ends)
                    self.launch()
            if ends >= 5 or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not serve; the end of {self.log}:\n{log_tail(self.log)}")
            time.sleep(0.01)  # a server announces its readiness by accepting, and only so

    def _stdout(self, log: BinaryIO) -> BinaryIO | int:
        return log

    def _open_log(self) -> BinaryIO:
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_LIMIT:
                self.log.replace(self.log.with_suffix(self.log.suffix + ".1"))
        return os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def log_tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, read from its last 8 kB; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
