"""One owner at a time for a data folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from deploy.local.processes import is_alive

__all__ = ["FolderBusy", "FolderLock"]


class FolderBusy(Exception):
    """Another process owns the data folder. ``pid`` is that process, or 0 when it could not be told."""

    def __init__(self, folder: Path, pid: int) -> None:
        super().__init__(f"{folder} is in use by process {pid or '(unknown)'}")
        self.folder = folder
        self.pid = pid


class FolderLock:
    """An advisory lock (flock) on ``<folder>/lock``, which the kernel releases however its holder dies.

    The lock belongs to the open file: a child that is given :meth:`fileno` keeps it held after the parent's death.
    The guard uses that, so that nobody can enter while it still cleans up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd: int | None = None

    def acquire(self, *, cleanup_seconds: float = 20.0) -> None:
        """Takes the lock. Raises FolderBusy at once while its owner lives.

        When the owner is dead its guard may still be stopping what it left: waits up to ``cleanup_seconds`` for that.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + cleanup_seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                written = os.pread(fd, 32, 0).strip()
                owner = int(written) if written.isdigit() else 0
                if (owner and is_alive(owner)) or time.monotonic() > deadline:
                    os.close(fd)
                    raise FolderBusy(self._folder, owner) from None
                time.sleep(0.05)  # flock has no timeout, and the guard no way to call us
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def fileno(self) -> int:
        if self._fd is None:
            raise RuntimeError(f"the lock on {self._folder} is not held")
        return self._fd

    def release(self) -> None:
        """Gives the folder back; harmless when the lock is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
