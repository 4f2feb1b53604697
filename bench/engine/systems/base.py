"""What a job system must offer to be measured."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

from bench.engine.ground import Place

__all__ = ["Client", "System", "module_command", "spin_until"]


def module_command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def spin_until(seen: Callable[[], bool], *, pause: float = 0.0, within: float = 30.0) -> None:
    """Ask every ``pause`` seconds, without one by default. Raises RuntimeError after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not seen():
        if time.monotonic() > deadline:
            raise RuntimeError(f"a job has not ended within {within:.0f} s")
        if pause:
            time.sleep(pause)


class Client(ABC):
    """A producer's view of one place."""

    @abstractmethod
    def load(self, jobs: int, seconds: float = 0.0) -> None:
        """Accept ``jobs`` jobs that sleep for ``seconds``; on return all of them are stored and announced."""

    @abstractmethod
    def unfinished(self) -> bool:
        """Whether any job has not ended. Cheap enough to be asked often."""

    @abstractmethod
    def ended_at(self) -> float:
        """When the last job ended, in seconds since the epoch, as the system itself has recorded it."""

    @abstractmethod
    def verify(self, jobs: int) -> None:
        """Raises RuntimeError unless exactly ``jobs`` jobs succeeded, with all that the system promises to keep."""

    @abstractmethod
    def one(self) -> None:
        """Submit one job and return as soon as its completion can be seen."""

    def hold(self, key: str) -> None:
        """Submit one job that pushes the time to the Redis list ``key`` when it starts, then sleeps for minutes."""
        raise NotImplementedError


class System(ABC):
    """A job system with the settings it is measured at."""

    name: str
    schema: str  # systems with the same schema share a template database
    setting: str  # in words, for the report
    processes = 2

    @abstractmethod
    def install(self, database_url: str) -> None:
        """Make the schema."""

    @abstractmethod
    def commands(self, processes: int) -> list[list[str]]:
        """What starts ``processes`` worker processes."""

    def environment(self) -> dict[str, str]:
        """What the workers need beyond the addresses."""
        return {}

    @abstractmethod
    def client(self, place: Place) -> AbstractContextManager[Client]: ...
