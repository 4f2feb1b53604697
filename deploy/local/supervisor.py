"""Keeps child processes running, and stops them in order. One thread; nothing here knows what the children are."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from deploy.local.child import Child
from deploy.local.embedded import Say
from deploy.local.guard import Guard

__all__ = ["Supervisor"]

FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0  # seconds before a restart, doubling
STEADY_AFTER = 30.0  # seconds alive after which the next death counts as the first
_GLANCE = 0.03  # seconds between looks at a condition that has no event, such as a port that begins to answer


@dataclass
class _Watch:
    child: Child
    stage: int
    restart: bool
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float | None = None  # when to start it again
    seen_down: bool = False


class Supervisor:
    """Owns its children from ``add`` to ``stop``. ``on_restart`` is called after a child has come back.

    Use inside ``with supervisor.signals():``, in the main thread. SIGINT, SIGTERM and SIGHUP ask it to stop; a second
    one while it stops cuts the patience with the highest stage short (the stages below it hold data).
    """

    def __init__(self, guard: Guard, say: Say, on_restart: Callable[[], None] = lambda: None) -> None:
        self._guard = guard
        self._say = say
        self._on_restart = on_restart
        self._watches: list[_Watch] = []
        self._requests = 0
        self._wakeup = -1

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked us to stop."""
        return self._requests > 0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Listens to signals. The end of a child is one of them, so nothing has to be polled for that."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        self._wakeup, writer = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(writer, False)
        earlier = {number: signal.signal(number, self._on_signal) for number in numbers}
        earlier_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier_writer)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            os.close(writer)
            os.close(self._wakeup)

    def add(self, child: Child, stage: int, *, restart: bool = True) -> None:
        """Starts the child and watches it. Higher stages are stopped first. Raises OSError when it cannot start."""
        watch = _Watch(child, stage, restart)
        self._launch(watch)
        self._watches.append(watch)
        self._protect()

    def run_until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Supervises until the condition holds: True. False when asked to stop, or after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.stopping:
            self._restart_the_dead()
            if condition():
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._wait(_GLANCE)
        return False

    def run(self) -> None:
        """Supervises until asked to stop."""
        while not self.stopping:
            self._restart_the_dead()
            due = [watch.due for watch in self._watches if watch.due is not None]
            self._wait(max(0.0, min(due) - time.monotonic()) if due else None)

    def stop(self) -> None:
        """Stops every child, the highest stage first; afterwards nothing of them runs and the guard is gone."""
        stages = sorted({watch.stage for watch in self._watches}, reverse=True)
        highest = stages[0] if stages else 0
        for stage in stages:
            children = [watch.child for watch in self._watches if watch.stage == stage]
            for child in children:
                child.ask_to_stop()
            deadline = time.monotonic() + max(child.grace for child in children)
            while any(child.running for child in children):
                left = deadline - time.monotonic()
                hurried = stage == highest and self._requests > 1
                if left <= 0 or hurried:
                    names = ", ".join(child.name for child in children if child.running)
                    self._say(f"killing {names}: {'asked twice' if hurried else 'the grace period is over'}")
                    break
                self._wait(left)
            for child in children:
                child.kill_group()
            self._watches = [watch for watch in self._watches if watch.stage != stage]
            self._protect()
        self._guard.close()

    def _launch(self, watch: _Watch) -> None:
        watch.started = time.monotonic()
        watch.due = None
        watch.seen_down = False
        watch.child.launch()

    def _restart_the_dead(self) -> None:
        changed = False
        now = time.monotonic()
        for watch in self._watches:
            if watch.child.running or not watch.restart:
                continue
            if not watch.seen_down:
                watch.seen_down = True
                if now - watch.started > STEADY_AFTER:
                    watch.delay = FIRST_DELAY
                self._plan_restart(watch, f"ended with status {watch.child.exit_status}")
            elif watch.due is not None and now >= watch.due:
                try:
                    self._launch(watch)
                    changed = True
                except OSError as error:
                    watch.seen_down = True
                    self._plan_restart(watch, f"cannot be started: {error}")
        if changed or self._guard.ensure():
            self._protect()
        if changed:
            self._on_restart()

    def _plan_restart(self, watch: _Watch, reason: str) -> None:
        self._say(f"{watch.child.name} {reason}; starting it again in {watch.delay:g} s (log: {watch.child.log})")
        watch.due = time.monotonic() + watch.delay
        watch.delay = min(watch.delay * 2, LONGEST_DELAY)

    def _protect(self) -> None:
        stages = sorted({watch.stage for watch in self._watches}, reverse=True)
        self._guard.protect([[w.child for w in self._watches if w.stage == stage] for stage in stages])

    def _wait(self, seconds: float | None) -> None:
        select.select([self._wakeup], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._requests += 1
