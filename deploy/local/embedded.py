"""What the embedded servers have in common: a home folder with a lock, a remembered port, and secrets."""

from __future__ import annotations

import os
import signal
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from deploy.local.child import Child
from deploy.local.locks import FolderLock
from deploy.local.ports import choose_port
from deploy.local.private_file import read_json, write_json

__all__ = ["EmbeddedServer", "Say"]

Say = Callable[[str], None]


class EmbeddedServer(Child):
    """A server on a free port of 127.0.0.1 whose state lives in one locked folder.

    ``open`` comes first and once: it locks the folder, stops a process that a killed owner left on it, prepares the
    data and settles the port, which from then on does not change. ``launch`` and ``stop`` may follow in turn as often
    as wished. ``close`` stops the server and gives the folder back. Port and password are kept for the next time, in
    ``<home>/server.json`` (0600).
    """

    def __init__(
        self, name: str, home: Path, log: Path, *, stop_signal: signal.Signals, say: Say, grace: float
    ) -> None:
        super().__init__(name, log, stop_signal=stop_signal, grace=grace)
        self.home = home
        self._say = say
        self._lock = FolderLock(home)
        self._memory: dict[str, object] = {}
        self._port = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with the password."""

    @abstractmethod
    def stop_leftover(self) -> int | None:
        """Stops a process that an earlier owner of this folder left running; its pid, or None."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes the data folder ready to be served from; repeating it changes nothing."""

    @property
    def port(self) -> int:
        return self._port

    @property
    def password(self) -> str:
        return self._recall("password", lambda: os.urandom(24).hex())

    def open(self) -> None:
        """See the class. Raises FolderBusy when another process owns the folder, RuntimeError when it is unusable."""
        self._lock.acquire()
        try:
            self._memory = read_json(self.home / "server.json")
            if (pid := self.stop_leftover()) is not None:
                self._say(f"{self.name}: stopped process {pid}, left by a supervisor that was killed")
            self.prepare()
            remembered = self._memory.get("port")
            self._port = choose_port(remembered if isinstance(remembered, int) else None)
            self._remember("port", self._port)
        except BaseException:
            self._lock.release()
            raise

    def start(self, timeout: float = 60.0) -> None:
        """Launches and waits until it serves."""
        self.launch()
        self.wait_ready(timeout)

    def close(self) -> None:
        self.stop()
        self._lock.release()

    def _recall(self, key: str, make: Callable[[], str]) -> str:
        value = self._memory.get(key)
        if not isinstance(value, str):
            value = make()
            self._remember(key, value)
        return value

    def _remember(self, key: str, value: object) -> None:
        if self._memory.get(key) != value:
            self._memory[key] = value
            write_json(self.home / "server.json", self._memory)
