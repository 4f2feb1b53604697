"""Looking at processes that are not our children, by pid."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from pathlib import Path

__all__ = ["command_line", "is_alive", "is_taken", "stop_orphan"]


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs; a zombie that nobody has reaped yet counts as gone (told on Linux only)."""
    if not is_taken(pid):
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return platform.system() != "Linux"
    return state not in ("Z", "X")


def is_taken(pid: int) -> bool:
    """Whether the kernel knows the number, be it of a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def command_line(pid: int) -> str:
    """The arguments ``pid`` was started with, separated by spaces; empty when it is gone or may not be looked at."""
    if platform.system() == "Linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            return ""
    listing = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout


def stop_orphan(pid_file: Path, marker: str, how: signal.Signals, *, grace: float = 10.0) -> int | None:
    """Stops the server named in ``pid_file`` when it still runs with ``marker`` in its arguments; gives its pid.

    None when there is no such process: a pid file outlives its process, and its number may belong to a stranger by now
    (in containers it soon does), so the number alone proves nothing. Sends ``how``, then SIGKILL after ``grace`` s.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    if pid <= 1 or not is_alive(pid) or marker not in command_line(pid):
        return None
    for step, patience in ((how, grace), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, step)
        except ProcessLookupError:
            return pid
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not is_alive(pid):
                return pid
            time.sleep(0.02)  # it is not our child: nothing tells us of its end
    raise RuntimeError(f"process {pid} ({pid_file}) does not end, not even by SIGKILL")
