"""Stop an attempt at its time limit, by a watch of its own that no busy handler or broken database delays."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware

from shared.jobs import JobTimeout

from ..run import Run, current_run

__all__ = ["TimeLimit"]


class TimeLimit(Middleware):
    """Interrupts a run ``claimed.time_limit`` seconds after it began. The watch sleeps until the next deadline."""

    def __init__(self) -> None:
        self._armed: dict[int, tuple[float, Run]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sleeps_until = float("inf")

    @property
    def alive(self) -> bool:
        """False when the watch has died; before its first job it is not needed."""
        return self._thread is None or self._thread.is_alive()

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        run = current_run()
        if run is None:
            return
        deadline = time.monotonic() + run.claimed.time_limit
        with self._changed:
            self._armed[id(run)] = (deadline, run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="time-limit", daemon=True)
                self._thread.start()
            # Later ones are seen when the watch next looks up: short jobs need not wake it.
            if deadline < self._sleeps_until:
                self._sleeps_until = deadline
                self._changed.notify()

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        run = current_run()
        if run is not None:
            with self._changed:
                self._armed.pop(id(run), None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [run for deadline, run in self._armed.values() if deadline <= now]
                for run in late:
                    self._armed.pop(id(run))
                if not late:
                    nearest = min((d for d, _ in self._armed.values()), default=float("inf"))
                    self._sleeps_until = nearest
                    self._changed.wait(None if nearest == float("inf") else nearest - now)
                    continue
            for run in late:
                run.interrupt(JobTimeout())
