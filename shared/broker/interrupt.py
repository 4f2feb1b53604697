"""Stopping a handler from outside, and only a handler: never the code around it that ends the job."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator

import structlog

__all__ = ["STUCK_SECONDS", "Interruptible"]

# How long a handler may take to stop once it has been told to. Then its job is ended without it.
STUCK_SECONDS = 2.0
# How long the functions that stop what a handler waits for may take before the handler itself is told.
_STOP_SECONDS = 1.0
# And how long a handler may take to end by itself after those.
_TIDY_SECONDS = 0.2
_log = structlog.get_logger(__name__)


class Interruptible:
    """The stretch of one thread, from ``enter`` to ``leave``, into which ``interrupt`` may raise an exception.

    An exception raised into a thread can surface between any two bytecodes, and would tear whatever it hits: a
    connection half taken from the pool, a lock, the writing of an outcome. So at most one is ever sent, only while
    the thread is exposed, and under the lock by which the thread exposes and shields itself; ``leave`` and
    ``shielded`` take back one that was sent but has not surfaced.

    What Python cannot interrupt (C code, a sleep) is given up after STUCK_SECONDS: ``on_stuck`` is called.
    """

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        self.reason: BaseException | None = None
        self.abandoned = False
        self._on_stuck = on_stuck
        self._lock = threading.Lock()
        self._exposed = False
        self._ended = False
        self._over = threading.Event()
        self._thread_id = 0
        self._stops: list[Callable[[], None]] = []
        self._stopping = threading.Lock()  # held while the functions in _stops are called

    # -- by the thread itself

    def enter(self) -> None:
        self._thread_id = threading.get_ident()
        self._expose()

    def leave(self) -> None:
        """From the return of this on, nothing is raised into the thread."""
        while True:
            try:
                with self._lock:
                    self._exposed = False
                    _raise_in_thread(self._thread_id, None)
                return
            except BaseException:
                # The one that was on its way surfaced in here. ``reason`` has it.
                if self.reason is None:
                    raise

    def end(self) -> bool:
        """The handler has ended. False when the run had been abandoned before."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        self._over.set()
        return True

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Nothing is raised inside; what comes meanwhile is raised at the end, what came before at once."""
        if threading.get_ident() != self._thread_id:  # a thread of the handler's own: nothing is raised into it
            self._check()
            yield
            return
        self.leave()
        try:
            self._check()
            yield
        finally:
            self._expose()
            self._check()

    @contextlib.contextmanager
    def exposed(self) -> Iterator[None]:
        """Within ``shielded``: back to normal for a while."""
        if threading.get_ident() != self._thread_id:
            yield
            return
        self._expose()
        try:
            self._check()
            yield
        finally:
            self.leave()

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """While the block runs, an interrupt calls ``stop`` from another thread. Leaving the block waits for a call
        under way, so that what ``stop`` ends is still this handler's."""
        self._stops.append(stop)
        try:
            self._check()
            yield
        finally:
            with self._stopping:
                self._stops.remove(stop)

    def _expose(self) -> None:
        with self._lock:
            # After the end: a generator of the handler's that is closed late must not expose what comes next.
            self._exposed = not self._ended

    def _check(self) -> None:
        if self.reason is not None:
            raise self.reason

    # -- by any other thread

    def interrupt(self, reason: BaseException) -> None:
        with self._lock:
            if self.reason is not None or self._ended:
                return
            self.reason = reason
        # A thread of its own: what the handler registered may hang, and neither the heartbeat nor the watch that
        # called may wait for it.
        threading.Thread(target=self._stop_handler, name="interrupt", daemon=True).start()

    def abandon(self) -> bool:
        """End what does not end by itself. False when it has ended."""
        with self._lock:
            if self._ended:
                return False
            self._ended = self.abandoned = True
            return True

    def _stop_handler(self) -> None:
        if self._stops:
            stopper = threading.Thread(target=self._call_stops, name="interrupt-stops", daemon=True)
            stopper.start()
            stopper.join(_STOP_SECONDS)
            # What the handler waited for has ended. Reaping it is better not torn: subprocess would take a child that
            # was killed for one that ended well.
            self._over.wait(_TIDY_SECONDS)
        self._tell()
        if not self._over.wait(STUCK_SECONDS):
            self._on_stuck()

    def _tell(self) -> None:
        """Raise the reason in the handler's thread; where that is shielded, it raises it itself at the shield's end."""
        with self._lock:
            if self._exposed and not self._ended and self.reason is not None:
                _raise_in_thread(self._thread_id, type(self.reason))

    def _call_stops(self) -> None:
        with self._stopping:
            for stop in list(self._stops):
                try:
                    stop()
                except Exception as e:
                    _log.warning("interrupt.stop_failed", error=type(e).__name__)


def _raise_in_thread(thread_id: int, exception: type[BaseException] | None) -> None:
    """Have ``exception`` raised in that thread at its next bytecode; None takes back one not yet raised.

    CPython's PyThreadState_SetAsyncExc. It cannot interrupt C code.
    """
    target = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)
