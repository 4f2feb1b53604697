"""The worker processes of one system, held and released together; and the CPU that they and the servers use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.stack import ROOT
from deploy.local.servers import EmbeddedServers

__all__ = ["Cpu", "CpuMeter", "Workers", "running"]

_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used by worker processes, Postgres and Redis."""

    workers: float
    postgres: float
    redis: float

    @property
    def total(self) -> float:
        return self.workers + self.postgres + self.redis

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.workers - other.workers, self.postgres - other.postgres, self.redis - other.redis)

    def each(self, jobs: int) -> Cpu:
        """Microseconds a job."""
        return Cpu(*(1e6 * seconds / jobs for seconds in (self.workers, self.postgres, self.redis)))


class CpuMeter:
    """Reads what whole process trees have used so far, processes that have ended included (Linux)."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self._servers = servers

    def read(self, workers: Sequence[int]) -> Cpu:
        return Cpu(
            sum(map(_tree_seconds, workers)),
            _tree_seconds(self._servers.postgres_pid),
            _tree_seconds(self._servers.valkey_pid),
        )


def _tree_seconds(pid: int) -> float:
    # A child that has ended counts among its parent's children; one that ends between the two calls is looked for
    # again, as it would be missed in both.
    while True:
        try:
            root = psutil.Process(pid)
            # user, system, and the same of children that have ended
            return sum(sum(p.cpu_times()[:4]) for p in (root, *root.children(recursive=True)))
        except psutil.NoSuchProcess as e:
            if e.pid == pid:
                raise


class Workers:
    """Started processes, each with its children in a process group of its own."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
        self._processes = processes
        self._log = log
        self._stopped = False

    @property
    def pids(self) -> list[int]:
        return [p.pid for p in self._processes]

    def check(self) -> None:
        """Raises RuntimeError, with the end of their log, when one of them has ended."""
        if any(p.poll() is not None for p in self._processes):
            raise RuntimeError(f"a worker ended:\n{self._log.read_text(errors='replace')[-3000:]}")

    def settle(self, within: float = 20.0) -> None:
        """Until they are idle (under a tenth of a core for half a second), so that start-up is over."""
        deadline = time.monotonic() + within
        before = self._seconds()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            self.check()
            now = self._seconds()
            if now - before < 0.05:
                return
            before = now

    def hold(self) -> None:
        """Stop them where they are, connections open."""
        self._signal(signal.SIGSTOP)

    def release(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, children included."""
        self._stopped = True
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def stop(self) -> None:
        """SIGTERM to each, SIGKILL to what has not ended after 10 s. Once they are stopped it does nothing."""
        if self._stopped:
            return
        self._signal(signal.SIGCONT)
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        self.kill()

    def _seconds(self) -> float:
        return sum(map(_tree_seconds, self.pids))

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path) -> Iterator[Workers]:
    """The commands as processes while the block runs. What they print goes to ``log``."""
    with log.open("ab") as out:
        processes = [
            subprocess.Popen(
                list(command),
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for command in commands
        ]
    workers = Workers(processes, log)
    try:
        yield workers
    finally:
        workers.stop()
