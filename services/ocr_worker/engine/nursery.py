"""Starts and ends reading processes. Two ways, one interface: forked from a template, or each started by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, Protocol

from .child import ENVIRONMENT
from .wire import FAILED, REPLY, REQUEST, Closed

__all__ = ["ForkingNursery", "Nursery", "SpawningNursery", "nursery_for_this_system"]

_ROOT: Final = Path(__file__).resolve().parents[3]  # the folder that holds ``services`` and ``shared``
_LOAD_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 10.0
_END_SECONDS: Final = 2.0
# Big tensors come from the heap and stay there for the next one, rather than being mapped and cleared anew: 6 % less
# CPU a page. What is free goes back to the system after each page (child.py), so an idle process stays small.
_ALLOCATOR: Final = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"
    ":glibc.malloc.top_pad=67108864"
}
# All that a reading process gets of our environment: none of the worker's secrets.
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Nursery(Protocol):
    """Safe to use from several threads."""

    # A process it started reads one document and no other, so that a hostile one cannot lie in wait for the next
    # tenant's. Where starting one means loading the models, they are used again.
    one_document: bool

    def warm(self) -> None:
        """Load what can be loaded before the first ``start``. Raises Closed."""

    def start(self) -> tuple[int, socket.socket]:
        """A new reading process: its id and our end of its socket. Raises Closed when none can be started."""

    def end(self, pid: int) -> int | None:
        """Kill the process if it still runs; its wait status, or None when that is not known."""

    def processes(self) -> list[int]:
        """Ids of the processes that belong to the nursery itself."""

    def close(self) -> None:
        """End everything at once."""


def nursery_for_this_system(memory_bytes: int) -> Nursery:
    """Forking on Linux. Elsewhere system libraries do not survive a fork without exec, so models load per process."""
    return ForkingNursery(memory_bytes) if sys.platform == "linux" else SpawningNursery(memory_bytes)


class ForkingNursery:
    one_document = True

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    def warm(self) -> None:
        with self._lock:
            self._ready()

    def start(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        try:
            with self._lock:
                pid = self._ask(self._ready(), b"F", 0, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if pid == FAILED:
            ours.close()
            raise Closed("no process could be forked")
        return pid, ours

    def end(self, pid: int) -> int | None:
        with self._lock:
            if self._control is None:
                return None  # the template is gone, and its children with it
            try:
                status = self._ask(self._control, b"R", pid)
            except Closed:
                return None
        return None if status == FAILED else status

    def processes(self) -> list[int]:
        with self._lock:
            return [self._template.pid] if self._template is not None else []

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._discard()

    def _ready(self) -> socket.socket:
        if self._closed:
            raise Closed("closed")
        if self._control is not None and self._template is not None and self._template.poll() is None:
            return self._control
        self._discard()
        ours, theirs = socket.socketpair()
        with theirs:
            self._template = _launch(theirs, self._memory_bytes)
        self._control = ours
        ours.settimeout(_LOAD_SECONDS)
        self._reply(ours)
        ours.settimeout(_ANSWER_SECONDS)
        return ours

    def _ask(self, control: socket.socket, order: bytes, pid: int, attached: socket.socket | None = None) -> int:
        try:
            socket.send_fds(control, [REQUEST.pack(order, pid)], [attached.fileno()] if attached else [])
        except OSError as error:
            self._discard()
            raise Closed from error
        return self._reply(control)

    def _reply(self, control: socket.socket) -> int:
        try:
            message = control.recv(REPLY.size, socket.MSG_WAITALL)
        except OSError as error:
            self._discard()
            raise Closed from error
        if len(message) < REPLY.size:
            self._discard()
            raise Closed("the template process ended")
        return int(REPLY.unpack(message)[0])

    def _discard(self) -> None:
        if self._control is not None:
            self._control.close()  # the template then kills its children and ends
            self._control = None
        if self._template is not None:
            _finish(self._template)
            self._template = None


class SpawningNursery:
    one_document = False

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def warm(self) -> None:
        """Nothing is shared here, so there is nothing to load ahead."""

    def start(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = _launch(theirs, self._memory_bytes, "direct")
        with self._lock:
            self._running[process.pid] = process
        return process.pid, ours

    def end(self, pid: int) -> int | None:
        with self._lock:
            process = self._running.pop(pid, None)
        if process is None:
            return None
        process.kill()
        code = process.wait()
        return -code if code < 0 else code << 8

    def processes(self) -> list[int]:
        return []

    def close(self) -> None:
        with self._lock:
            running = list(self._running)
        for pid in running:
            self.end(pid)


def _launch(channel: socket.socket, memory_bytes: int, *more: str) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment.update(
        ENVIRONMENT, **_ALLOCATOR, PYTHONPATH=str(_ROOT), PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1"
    )
    module = "services.ocr_worker.engine.template"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(channel.fileno()), str(memory_bytes), *more],
        pass_fds=[channel.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
