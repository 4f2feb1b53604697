"""The processes under test: started, killed, paused and started again by the harness."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from deploy.local.child import Child, Launch
from deploy.local.guard import Guard
from deploy.local.ports import LOOPBACK, choose_port
from deploy.local.services import REPOSITORY, answers_healthy
from tests.chaos.incidents import IncidentLog

__all__ = ["Fleet", "Member"]

_RESTART_DELAY = 0.15  # seconds between a death and the next start
_GLANCE = 0.05


class Member(Child):
    """One process of the fleet. ``role`` is worker, grading, scheduler or gateway; ``skew`` is its clock's error."""

    def __init__(self, name: str, role: str, module: str, env: Mapping[str, str], folder: Path, port_in: str) -> None:
        super().__init__(name, folder / f"{name}.log", grace=10.0)
        self.role = role
        self.port = choose_port()
        self.skew = 0.0
        self.expected_to_end = False  # somebody has sent it a signal that ends it
        self.asked_while_booting = False  # SIGTERM came before it could have a handler for that: it ends by it
        self._module = module
        self._env = env
        self._port_in = port_in

    def describe(self) -> Launch:
        own = {self._port_in: str(self.port), "CHAOS_SKEW": str(self.skew)}
        return Launch((sys.executable, "-m", self._module), {**self._env, **own}, REPOSITORY)

    def ready(self) -> bool:
        return self.running and answers_healthy(self.port)

    def stats(self) -> dict[str, Any]:
        """What its health port says. Raises OSError."""
        with urlopen(f"http://{LOOPBACK}:{self.port}/stats", timeout=2) as answer:
            stats: dict[str, Any] = json.load(answer)
        return stats

    def group_is_gone(self, within: float = 3.0) -> bool:
        """Whether nothing is left of the process's group: no child has outlived it."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False


class Fleet:
    """Keeps its members running from ``start`` to ``stop``; whatever dies is started again at once.

    An end that nobody asked for is an incident called ``died``: a self-killing job's, or a bug.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.log = IncidentLog()
        self.leftovers: list[str] = []  # processes that outlived the worker that started them; unclean exits
        self._guard = Guard()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def of(self, *roles: str) -> list[Member]:
        return [m for m in self.members if m.role in roles]

    def start(self, within: float = 60.0) -> None:
        with self._lock:
            for member in self.members:
                member.launch()
            self._guard.protect([self.members])
        self._keeper.start()
        self.await_ready(within)

    def await_ready(self, within: float = 30.0) -> None:
        """Until every member answers. Raises TimeoutError naming those that do not."""
        deadline = time.monotonic() + within
        while late := [m.name for m in self.members if not m.ready()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not healthy within {within:g} s: {', '.join(late)}; logs in {self.members[0].log}")
            time.sleep(_GLANCE)

    def kill(self, member: Member, *, pid: int | None = None, kind: str = "kill -9") -> None:
        """SIGKILL to the member's process alone, or to another process of its group."""
        with self._lock:
            if not member.running:
                return
            if pid is None:
                member.expected_to_end = True
            self.log.note(f"{kind} {member.role}", member.name, pid or member.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid or member.pid, signal.SIGKILL)

    def terminate(self, member: Member, within: float = 15.0) -> None:
        """SIGTERM, and wait until it has ended: with status 0, and nothing of it left. The keeper starts the next."""
        with self._lock:
            if not member.running:
                return
            pid = member.pid
            member.expected_to_end = True
            member.asked_while_booting = not member.ready()
            self.log.note(f"SIGTERM {member.role}", member.name, pid)
            member.ask_to_stop()
        deadline = time.monotonic() + within
        while member.running and member.pid == pid:
            if time.monotonic() > deadline:
                self.leftovers.append(f"{member.name} has not ended {within:g} s after SIGTERM")
                self.kill(member, kind="late after SIGTERM, kill -9")
                return
            time.sleep(0.02)

    def pause(self, member: Member, seconds: float) -> None:
        """SIGSTOP to its whole group, SIGCONT after ``seconds``."""
        with self._lock:
            if not member.running:
                return
            pid = member.pid
        with self.log.lasting(f"SIGSTOP {member.role}", member.name, pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGSTOP)
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Everything, by SIGTERM and in the end by SIGKILL."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join(10)
        for member in self.members:
            member.expected_to_end = True
            member.asked_while_booting = not member.ready()
            member.ask_to_stop()
        deadline = time.monotonic() + 12
        for member in self.members:
            while member.running and time.monotonic() < deadline:
                time.sleep(0.02)
            self._inspect_end(member)
            member.kill_group()
        self._guard.close()

    def _keep(self) -> None:
        while not self._stopping.wait(_GLANCE):
            for member in self.members:
                if not member.running:
                    self._revive(member)

    def _revive(self, member: Member) -> None:
        with self._lock:
            if not member.expected_to_end:
                self.log.note(f"died {member.role}", member.name, member.pid)
            self._inspect_end(member)
        time.sleep(_RESTART_DELAY)
        with self._lock:
            member.expected_to_end = member.asked_while_booting = False
            member.launch()
            self._guard.protect([self.members])

    def _inspect_end(self, member: Member) -> None:
        status = member.exit_status
        booting = member.asked_while_booting and status == -signal.SIGTERM
        if status not in (0, -signal.SIGKILL) and not booting:
            self.leftovers.append(f"{member.name} ended with status {status} (log: {member.log})")
        # gunicorn's workers look for their master once a second; a job worker's children must go with it at once.
        if member.role == "worker" and not member.group_is_gone():
            self.leftovers.append(f"{member.name} left processes of its group behind")
