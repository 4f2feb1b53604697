"""One job's events, read as a story: replayed through the table of transitions, and cut into attempts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shared.jobs import TERMINAL, TRANSITIONS, EventKind, Status

__all__ = ["Attempt", "History"]

_BY_KIND = {t.kind.value: t for t in TRANSITIONS}
_STARTED = EventKind.STARTED.value
_WORKER, _SCHEDULER = "worker:", "scheduler"


@dataclass(frozen=True, slots=True)
class Attempt:
    """From a ``started`` event to the one that ended it (None: it never ended)."""

    number: int
    worker_id: str
    began: float
    end: dict[str, Any] | None

    @property
    def charged_by_rescue(self) -> bool:
        """Ended not by its worker but for it: a lease ran out, or its process died."""
        return self.end is not None and str(self.end["actor"]).startswith(_SCHEDULER)


class History:
    """The events of one job, in order of their sequence numbers."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        self.events = sorted(events, key=lambda e: int(e["seq"]))
        self.moves = [e for e in self.events if e["kind"] in _BY_KIND]

    @property
    def terminal(self) -> list[dict[str, Any]]:
        return [e for e in self.moves if _BY_KIND[e["kind"]].target in TERMINAL]

    @property
    def started(self) -> list[dict[str, Any]]:
        return [e for e in self.moves if e["kind"] == _STARTED]

    def attempts(self) -> list[Attempt]:
        """Each with the first change of status after its start."""
        found = []
        for place, event in enumerate(self.moves):
            if event["kind"] == _STARTED:
                following = self.moves[place + 1] if place + 1 < len(self.moves) else None
                ended = following if following is not None and following["kind"] != _STARTED else None
                worker = str(event["actor"]).removeprefix(_WORKER)
                found.append(Attempt(event["attempt"], worker, event["at"].timestamp(), ended))
        return found

    def faults(self, row: dict[str, Any]) -> Iterator[str]:
        """What is wrong with the story itself, and between it and the job's row."""
        numbers = [e["seq"] for e in self.events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"event sequence has a gap or a repetition: {numbers}"
        if row["event_seq"] != len(numbers):
            yield f"event_seq {row['event_seq']} of {len(numbers)} events"
        if not self.events or self.events[0]["kind"] != EventKind.ACCEPTED.value:
            yield "the first event is not its acceptance"
        status = Status.WAITING if self._waited() else Status.QUEUED
        for event in self.moves:
            transition = _BY_KIND[event["kind"]]
            if status not in transition.sources:
                yield f"event {event['seq']}: {event['kind']} out of {status.value} is no allowed transition"
            status = transition.target
        if status.value != row["status"]:
            yield f"status {row['status']}, but the last status event says {status.value}"
        if self.terminal and self.events[-1] is not self.terminal[-1]:
            yield f"events after the terminal one: {[e['kind'] for e in self.events]}"
        if [e["attempt"] for e in self.started] != list(range(1, len(self.started) + 1)):
            yield f"started events of attempts {[e['attempt'] for e in self.started]}"
        if row["attempt"] != len(self.started):
            yield f"attempt {row['attempt']}, but {len(self.started)} started events"

    def _waited(self) -> bool:
        first = self.moves[0]["kind"] if self.moves else None
        return first is not None and (
            first == EventKind.UNBLOCKED.value or str(self.moves[0]["actor"]).startswith("parent:")
        )

    def summary(self) -> str:
        return " ".join(f"{e['kind']}@{e['attempt']}" for e in self.events if e["kind"] not in ("progress", "log"))
