"""The guard: stops what a killed supervisor left running.

A shell of about 1 MB sits in a session of its own at the end of a pipe. Only the supervisor holds the other end, so its
death, of whatever kind, is an end of file here, on Linux and macOS alike. (PR_SET_PDEATHSIG is Linux only, does not
reach grandchildren, and fires when the *thread* that started the child ends.)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Sequence

from deploy.local.child import Child

__all__ = ["Guard"]

# A line is the whole plan: stages to stop one after the other, "TERM:101 TERM:102|TERM:103|INT:104". The last one
# counts; an empty one means that nothing runs. A stage gets 3 s, since its owner is gone and nobody waits for results
# (leases and the write-ahead log make a SIGKILL safe).
_SCRIPT = """
trap '' HUP INT TERM
plan=
while IFS= read -r line; do plan=$line; done
alive() {
    kill -0 "$1" 2>/dev/null || return 1
    [ -r "/proc/$1/stat" ] || return 0
    read -r _ _ state _ <"/proc/$1/stat" && [ "$state" != Z ]  # a slow init reaps late
}
stop() {
    for entry in $1; do kill -s "${entry%%:*}" "${entry#*:}" 2>/dev/null; done
    turns=0
    while [ $turns -lt 30 ]; do
        left=
        for entry in $1; do alive "${entry#*:}" && left=1; done
        [ -z "$left" ] && break
        sleep 0.1
        turns=$((turns + 1))
    done
    for entry in $1; do kill -s KILL -- "-${entry#*:}" 2>/dev/null; done
}
while [ -n "$plan" ]; do
    stop "${plan%%|*}"
    case $plan in *'|'*) plan=${plan#*|} ;; *) plan= ;; esac
done
"""


class Guard:
    """Owns the guard process. Hand it the plan after every change; ``close`` when all is stopped.

    ``locks`` are file descriptors of folder locks that stay held until the guard has finished.
    """

    def __init__(self, locks: Iterable[int] = ()) -> None:
        self._locks = tuple(locks)
        self._plan = b"\n"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def protect(self, stages: Sequence[Iterable[Child]]) -> None:
        """The running children of these stages, first to be stopped first. Starts the guard again if it was killed."""
        entries = (
            " ".join(f"{child.stop_signal.name[3:]}:{child.pid}" for child in stage if child.running)
            for stage in stages
        )
        self._plan = "|".join(filter(None, entries)).encode() + b"\n"
        self.ensure()
        self._send()

    def ensure(self) -> bool:
        """Starts the guard when it does not run. True when it had to."""
        if self._process is not None and self._process.poll() is None:
            return False
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "gradeline-guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            pass_fds=self._locks,
        )
        self._send()
        return True

    def close(self) -> None:
        """Ends the guard, which stops what the last plan still names."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _send(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # killed just now: the next ensure() notices
                self._process.stdin.write(self._plan)
