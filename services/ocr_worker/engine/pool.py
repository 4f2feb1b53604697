"""A pool of killable reading processes, shared by all threads of a worker.

Why not ``pebble.ProcessPool``: in 5.2 the death of an idle process breaks the whole pool, a cancel is SIGTERM with
up to 3 s of grace while a C call runs, results come back as pickle from a process that opens hostile files, and each
process loads its own copy of the models.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from shared.contracts import Page

from .child import DocumentInfo
from .errors import MESSAGES, DocumentError
from .limits import MAX_LONG_SIDE, MAX_WORDS
from .nursery import Nursery, nursery_for_this_system
from .wire import Closed, receive, send

__all__ = ["PAGE_SECONDS", "Pending", "ReaderPool", "usable_cores"]

PAGE_SECONDS: Final = 120.0
_INSPECT_SECONDS: Final = 30.0
# To take a task: at once where processes are forked, after loading the models where they are not.
_START_SECONDS: Final = 60.0
_STARTS: Final = 2
_OK: Final = b'{"ok":'

T = TypeVar("T", bound=BaseModel)


class Pending(Future[T]):
    """A future whose ``cancel`` also works while it runs: the process is killed, ``result()`` raises CancelledError."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._channel: socket.socket | None = None
        self._stopped = False

    def cancel(self) -> bool:
        """True when the result will not come; False when it is there already. Returns at once, from any thread."""
        if super().cancel():
            return True
        with self._guard:
            if self.done():
                return False
            self._stopped = True
            if self._channel is not None:
                _hang_up(self._channel)
        return True

    @property
    def stopped(self) -> bool:
        return self._stopped

    def attach(self, channel: socket.socket) -> None:
        with self._guard:
            self._channel = channel
            if self._stopped:
                _hang_up(channel)

    def detach(self) -> bool:
        """No cancel reaches the process any more; True when one did."""
        with self._guard:
            self._channel = None
            return self._stopped


@dataclass(frozen=True, slots=True)
class _Task(Generic[T]):
    pending: Pending[T]
    request: dict[str, Any]
    answer: type[T]
    seconds: float
    fits: Callable[[T], bool]

    @property
    def files(self) -> tuple[str, str | None]:
        """The document, and the folder of its images: all that the process may open."""
        image = self.request.get("image_path")
        return self.request["path"], os.path.dirname(image) if image else None


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    channel: socket.socket
    files: tuple[str, str | None]


class ReaderPool:
    """At most ``processes`` pages are read at once (0: one a usable core), each process within ``memory_bytes``.

    Nothing starts before the first call, unless ``warm``: then the models load in the background. A reading process
    without work for ``idle_seconds`` is ended; starting one again takes milliseconds where processes can be forked.
    What happens to a process happens to its page only: the others read on, and it is replaced. A process that refused
    a document is replaced too: a damaged file may have damaged it. Where processes can be forked, each reads the pages
    of one document and ends, so that nothing of it meets the next one. Thread-safe.
    """

    def __init__(
        self,
        processes: int = 0,
        memory_bytes: int = 3 * 1024**3,
        *,
        idle_seconds: float = 20.0,
        warm: bool = False,
        nursery: Nursery | None = None,
    ) -> None:
        self.processes = processes or usable_cores()
        self._idle_seconds = idle_seconds
        self._nursery = nursery or nursery_for_this_system(memory_bytes)
        self._tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._live: set[Pending[Any]] = set()
        self._children: dict[int, _Child] = {}  # by slot
        self._slots: list[threading.Thread] = []
        self._closed = False
        if warm:
            threading.Thread(target=self._warm, name="ocr-warm", daemon=True).start()

    def inspect(self, path: Path, media_type: str, max_pages: int) -> Pending[DocumentInfo]:
        """How many pages the document has. The future's ``result()`` raises DocumentError or CancelledError."""
        request = {"call": "inspect", "path": str(path), "media_type": media_type, "max_pages": max_pages}
        return self._submit(request, DocumentInfo, _INSPECT_SECONDS, lambda info: 0 < info.pages <= max_pages)

    def read_page(
        self, path: Path, media_type: str, number: int, image_path: Path, *, timeout: float = PAGE_SECONDS
    ) -> Pending[Page]:
        """Read page ``number`` and write its image to ``image_path``. ``timeout`` bounds its CPU and wall seconds,
        counted from when a process takes it. The future's ``result()`` raises DocumentError or CancelledError."""
        request = {
            "call": "read_page",
            "path": str(path),
            "media_type": media_type,
            "number": number,
            "image_path": str(image_path),
        }
        return self._submit(request, Page, timeout, lambda page: _is_sound(page, number))

    def process_ids(self) -> list[int]:
        """Reading processes that run now, busy or idle; for statistics and tests."""
        with self._lock:
            return [child.pid for child in self._children.values()]

    def template_ids(self) -> list[int]:
        """The process that holds the models, where there is one."""
        return self._nursery.processes()

    def close(self) -> None:
        """Cancel everything, end all processes, within a second or two. Later calls are refused."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            live, slots = list(self._live), list(self._slots)
        for pending in live:
            pending.cancel()
        for _ in slots:
            self._tasks.put(None)
        for slot in slots:
            slot.join(5.0)
        self._nursery.close()

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, request: dict[str, Any], answer: type[T], seconds: float, fits: Callable[[T], bool]
    ) -> Pending[T]:
        pending: Pending[T] = Pending()
        task = _Task(pending, {**request, "cpu_seconds": seconds}, answer, seconds, fits)
        with self._lock:
            if self._closed:
                raise RuntimeError("the reader pool is closed")
            self._live.add(pending)
            if not self._slots:
                self._slots = [
                    threading.Thread(target=self._slot, args=(i,), name=f"ocr-slot-{i}", daemon=True)
                    for i in range(self.processes)
                ]
                for slot in self._slots:
                    slot.start()
        pending.add_done_callback(self._forget)
        self._tasks.put(task)
        return pending

    def _forget(self, pending: Future[Any]) -> None:
        with self._lock:
            self._live.discard(pending)

    def _warm(self) -> None:
        try:
            self._nursery.warm()
        except (Closed, OSError):
            return  # the first page meets the same trouble, and has somebody to tell

    # --- one slot: one thread that owns at most one process ---

    def _slot(self, slot: int) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=self._idle_seconds if slot in self._children else None)
            except queue.Empty:
                self._dismiss(slot)
                continue
            if task is None:
                self._dismiss(slot)
                return
            if task.pending.set_running_or_notify_cancel():
                self._perform(slot, task)

    def _perform(self, slot: int, task: _Task[T]) -> None:
        outcome: T | Exception
        try:
            outcome = self._outcome(slot, task)
        except Exception as error:
            self._dismiss(slot)
            outcome = error
        if task.pending.detach():
            self._dismiss(slot)  # its socket is closed
            outcome = CancelledError()
        if isinstance(outcome, Exception):
            task.pending.set_exception(outcome)
        else:
            task.pending.set_result(outcome)

    def _outcome(self, slot: int, task: _Task[T]) -> T:
        if task.pending.stopped:
            raise CancelledError
        child = self._taken(slot, task)
        try:
            reply = receive(child.channel, task.seconds)
        except TimeoutError:
            raise DocumentError("document.too_slow") from None
        except Closed:
            raise DocumentError(_cause(self._dismiss(slot))) from None
        return _parse(reply, task)

    def _taken(self, slot: int, task: _Task[Any]) -> _Child:
        """A process that has the task. One that died idle, before it looked at the document, is not the document's
        fault: another gets the task."""
        request = json.dumps(task.request).encode()
        for _ in range(_STARTS):
            try:
                child = self._child(slot, task.files)
                task.pending.attach(child.channel)
                send(child.channel, request)
                receive(child.channel, _START_SECONDS)
            except (Closed, OSError):
                self._dismiss(slot)
                if task.pending.stopped:
                    raise CancelledError from None
            else:
                return child
        raise DocumentError("document.crashed_reader")

    def _child(self, slot: int, files: tuple[str, str | None]) -> _Child:
        child = self._children.get(slot)
        if child is not None and ((self._nursery.one_document and child.files != files) or _is_hung_up(child.channel)):
            self._dismiss(slot)
            child = None
        if child is None:
            child = _Child(*self._nursery.start(), files)
            with self._lock:
                self._children[slot] = child
        return child

    def _dismiss(self, slot: int) -> int | None:
        """End the slot's process, if it has one, and answer its wait status."""
        with self._lock:
            child = self._children.pop(slot, None)
        if child is None:
            return None
        status = self._nursery.end(child.pid)
        child.channel.close()
        return status


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the CPU quota of its container (cgroup v2), at least 1."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    return max(1, round(cores))


def _parse(reply: bytes, task: _Task[T]) -> T:
    """The reply comes from a process that a document may have taken over: anything but what we expect is a crash."""
    try:
        if reply.startswith(_OK):
            answer = task.answer.model_validate_json(reply[len(_OK) : -1])
            if task.fits(answer) and not (b"\\u0000" in reply and _has_nul(json.loads(reply))):
                return answer
            raise DocumentError("document.crashed_reader")
        code = json.loads(reply)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        code = None
    raise DocumentError(code if isinstance(code, str) and code in MESSAGES else "document.crashed_reader")


def _is_sound(page: Page, number: int) -> bool:
    """Is it a page as ``read_page`` makes them? The numbers go into columns, the words into memory."""
    sides = 1 <= page.width <= 2 * MAX_LONG_SIDE and 1 <= page.height <= 2 * MAX_LONG_SIDE
    return page.number == number and sides and sum(len(line.words) for line in page.lines) <= MAX_WORDS


def _has_nul(value: Any) -> bool:
    """Is there a NUL in any text? PostgreSQL cannot store it."""
    if isinstance(value, dict):
        return any(_has_nul(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_nul(item) for item in value)
    return isinstance(value, str) and "\x00" in value


def _cause(status: int | None) -> str:
    """What a process's death says of its document. Out of CPU is certain; all else may have come from outside."""
    if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return "document.too_slow"
    return "document.crashed_reader"


def _hang_up(channel: socket.socket) -> None:
    with suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def _is_hung_up(channel: socket.socket) -> bool:
    try:
        channel.setblocking(False)
        return channel.recv(1, socket.MSG_PEEK) is not None  # end of file, or bytes nobody asked for
    except BlockingIOError:
        return False
    except OSError:
        return True
