"""The state machine: what may become of a job."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from shared.jobs import ACTIVE, TERMINAL, TRANSITIONS, EventKind, Status
from shared.jobs.states import Priority, allowed


def test_only_a_redrive_leaves_a_terminal_status() -> None:
    leaving = {t.kind for t in TRANSITIONS if t.sources & TERMINAL}
    assert leaving == {EventKind.REDRIVEN, EventKind.REVIVED}


def test_every_active_status_can_still_be_cancelled() -> None:
    assert allowed(EventKind.CANCELLED).sources == ACTIVE


def test_every_status_can_be_reached_and_only_waiting_or_queued_begin() -> None:
    reached = {t.target for t in TRANSITIONS}
    assert reached | {Status.WAITING} == set(Status)


def test_progress_and_log_change_no_status() -> None:
    for kind in (EventKind.PROGRESS, EventKind.LOG, EventKind.ACCEPTED):
        with pytest.raises(KeyError):
            allowed(kind)


def test_a_completed_job_came_from_processing() -> None:
    assert allowed(EventKind.COMPLETED).sources == {Status.PROCESSING}


def test_priorities_are_ordered_for_the_claim() -> None:
    assert Priority.of("high") < Priority.of("normal") < Priority.of("low")
    with pytest.raises(ValueError, match="high, normal or low"):
        Priority.of("urgent")


def test_no_status_is_written_as_a_string_outside_the_state_machine() -> None:
    root = Path(__file__).parents[3]
    # Words that are also ordinary English are looked for in quotes, as SQL and Python write statuses.
    quoted = [f"{q}{s.value}{q}" for s, q in itertools.product(Status, "'\"")]
    offenders = []
    for folder in ("shared", "services"):
        for path in (root / folder).rglob("*.py"):
            if path.name in {"states.py", "tables.py"} or path.parent.name == "versions":
                continue
            text = path.read_text()
            # Only where jobs' status is written: an assignment in SQL or a comparison with the column.
            offenders += [
                f"{path.relative_to(root)}: {literal}"
                for literal in quoted
                for form in (
                    f"status = {literal}",
                    f"status={literal}",
                    f"status <> {literal}",
                    f"status in ({literal}",
                )
                if form in text
            ]
    assert offenders == []
