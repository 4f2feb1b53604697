"""What the harness did to the system, and when: printed, and looked up when a job was charged."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Incident", "IncidentLog"]

# A charge is written some time after its cause: by the next rescue, at the latest when a lease has run out.
_POSTGRES = "postgres"


@dataclass(slots=True)
class Incident:
    """One disturbance of one target. ``until`` is when it was over; times are the wall clock's, as Postgres has it."""

    kind: str
    target: str
    pid: int | None
    at: float
    until: float


@dataclass
class IncidentLog:
    """The incidents of one run, in order. Used from many threads."""

    began: float = field(default_factory=time.time)
    incidents: list[Incident] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, target: str, pid: int | None = None) -> Incident:
        now = time.time()
        incident = Incident(kind, target, pid, now, now)
        with self._lock:
            self.incidents.append(incident)
        return incident

    @contextmanager
    def lasting(self, kind: str, target: str, pid: int | None = None) -> Iterator[None]:
        incident = self.note(kind, target, pid)
        incident.until = float("inf")
        try:
            yield
        finally:
            incident.until = time.time()

    def hit(self, pid: int | None, since: float, until: float) -> bool:
        """Whether this process was killed, paused or cut off from Postgres between the two times."""
        return any(
            i.at <= until and i.until >= since and (i.target == _POSTGRES or (pid is not None and i.pid == pid))
            for i in list(self.incidents)
        )

    def postgres_away(self, since: float, until: float) -> bool:
        return self.hit(None, since, until)

    def counts(self) -> Counter[str]:
        return Counter(i.kind for i in self.incidents)

    def lines(self) -> list[str]:
        return [
            f"{i.at - self.began:6.2f} s  {i.kind:<28} {i.target}{f' (pid {i.pid})' if i.pid else ''}"
            + (f", for {i.until - i.at:.2f} s" if i.until - i.at > 0.01 else "")
            for i in self.incidents
        ]
