"""The one state machine of a job: statuses, and the only transitions that exist between them.

Every statement that changes a status is built from this table (``_sql/``); no status is written as a
string anywhere else, and a test holds that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = ["ACTIVE", "TERMINAL", "TRANSITIONS", "EventKind", "Hold", "Priority", "Status", "Transition", "allowed"]


class Status(StrEnum):
    WAITING = "waiting"  # for parents
    QUEUED = "queued"  # due now, or at run_at
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
ACTIVE = frozenset(Status) - TERMINAL


class Priority(IntEnum):
    HIGH = 0
    NORMAL = 1
    LOW = 2

    @classmethod
    def of(cls, name: str) -> Priority:
        """Raises ValueError for anything but high, normal, low."""
        try:
            return cls[name.upper()]
        except KeyError:
            raise ValueError(f"priority must be high, normal or low, not {name!r}") from None

    @property
    def label(self) -> str:
        return self.name.lower()


class Hold(IntEnum):
    """Why a queued job is not among those that a claim looks at. Not a status: it comes and goes by itself."""

    NONE = 0
    KEY = 1  # as many jobs of its concurrency key run as may
    ALONE = 2  # two processes died while they held it: it runs in a process that runs nothing else


class EventKind(StrEnum):
    """What an event says happened. Progress and log change no status."""

    ACCEPTED = "accepted"
    UNBLOCKED = "unblocked"  # the last parent ended
    STARTED = "started"
    PROGRESS = "progress"
    LOG = "log"
    COMPLETED = "completed"
    RETRYING = "retrying"
    SNOOZED = "snoozed"
    RELEASED = "released"  # given back by a stopping worker
    STALLED = "stalled"  # its lease ran out, though its worker was alive
    CRASHED = "crashed"  # its worker died, or was cut off
    FAILED = "failed"
    CANCELLED = "cancelled"
    REDRIVEN = "redriven"  # by a person: once more from the start
    REVIVED = "revived"  # its parent was redriven, so it waits again


@dataclass(frozen=True, slots=True)
class Transition:
    """A change that may happen: from any of ``sources``, to ``target``, leaving an event of ``kind``."""

    kind: EventKind
    sources: frozenset[Status]
    target: Status


def _t(kind: EventKind, target: Status, *sources: Status) -> Transition:
    return Transition(kind, frozenset(sources), target)


TRANSITIONS: tuple[Transition, ...] = (
    _t(EventKind.UNBLOCKED, Status.QUEUED, Status.WAITING),
    _t(EventKind.STARTED, Status.PROCESSING, Status.QUEUED),
    _t(EventKind.COMPLETED, Status.COMPLETED, Status.PROCESSING),
    _t(EventKind.RETRYING, Status.QUEUED, Status.PROCESSING),
    _t(EventKind.SNOOZED, Status.QUEUED, Status.PROCESSING),
    _t(EventKind.RELEASED, Status.QUEUED, Status.PROCESSING),
    _t(EventKind.STALLED, Status.QUEUED, Status.PROCESSING),
    _t(EventKind.CRASHED, Status.QUEUED, Status.PROCESSING),
    # A waiting job fails when a parent did; a processing one by its handler, or by too many stalls or crashes.
    _t(EventKind.FAILED, Status.FAILED, Status.PROCESSING, Status.WAITING),
    _t(EventKind.CANCELLED, Status.CANCELLED, Status.WAITING, Status.QUEUED, Status.PROCESSING),
    _t(EventKind.REDRIVEN, Status.QUEUED, Status.FAILED, Status.CANCELLED),
    _t(EventKind.REVIVED, Status.WAITING, Status.FAILED, Status.CANCELLED),
)

_BY_KIND = {t.kind: t for t in TRANSITIONS}


def allowed(kind: EventKind) -> Transition:
    """The transition that an event of this kind is. Raises KeyError for kinds that change nothing."""
    return _BY_KIND[kind]
