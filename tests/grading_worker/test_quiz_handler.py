"""The job ``grading.quiz``: what it loads, what it says on the way, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from services.grading_worker.quiz import build
from shared.contracts import GRADING_QUIZ, GradingPayload, QuizResult
from shared.jobs.context import Done, JobInfo
from shared.jobs.errors import PermanentError
from tests.grading_worker.sheets import key_of, sheet

ORG, STANDARD, SUBMISSION, DOCUMENT, GRADING = (uuid4() for _ in range(5))
KEY = key_of(
    {"kind": "single_choice", "options": {"A": "Venus", "B": "Mars"}, "answer": "B"},
    {"kind": "numeric", "answer": 9.8, "unit": "m/s²", "points": 2},
)


@dataclass
class Store:
    """Answers the handler's reads by table, for one organisation, and keeps what is written."""

    key: Any = field(default_factory=lambda: KEY.model_dump(mode="json"))
    grading: tuple[Any, Any] | None = (None, None)
    submission: tuple[Any, Any] | None = ("Maya", DOCUMENT)
    pages: list[Any] = field(default_factory=lambda: [sheet("1. B", "2. 9.8 m/s2")])
    written: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def execute(self, sql: str, params: tuple[Any, ...]) -> Any:
        if sql.strip().startswith("UPDATE"):
            self.written.append((sql, params))
            return None
        assert params[-1] == ORG, "every read is scoped to the job's organisation"
        row: Any = None
        if "standard_versions" in sql:
            row = (self.key,) if self.key else None
        elif "FROM gradings" in sql:
            row = self.grading
        elif "FROM submissions" in sql:
            row = self.submission
        rows = [
            (
                p.number,
                p.width,
                p.height,
                p.rotation,
                p.source,
                p.confidence,
                p.image_key,
                [li.model_dump() for li in p.lines],
            )
            for p in self.pages
        ]
        return SimpleNamespace(fetchone=lambda: row, fetchall=lambda: rows)


@dataclass
class Context:
    store: Store
    steps: list[tuple[int, str]] = field(default_factory=list)
    job: JobInfo = field(
        default_factory=lambda: JobInfo(uuid4(), ORG, "grading.quiz", 1, 0, None, datetime.now(UTC), None)
    )

    def progress(self, percent: int, step: str) -> None:
        self.steps.append((percent, step))

    def log(self, message: str, **fields: Any) -> None:
        assert all(isinstance(v, int | float) for v in fields.values())

    @contextmanager
    def connection(self) -> Iterator[Any]:
        yield self.store

    def on_interrupt(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def check(self) -> None: ...


def run(store: Store, submission: UUID | None = SUBMISSION) -> tuple[QuizResult, Context]:
    ctx = Context(store)
    handler = build(SimpleNamespace(settings=None, storage=None))
    assert handler.job_type is GRADING_QUIZ
    payload = GradingPayload(grading_id=GRADING, submission_id=submission, standard_id=STANDARD, standard_version=1)
    done = handler.run(cast(Any, ctx), payload)
    assert isinstance(done, Done)
    for effect in done.effects:
        effect(cast(Any, store))
    return done.result, ctx


def test_a_submission_is_graded_and_written_with_the_result() -> None:
    store = Store()
    result, ctx = run(store)
    assert (result.points, result.max_points, result.percentage, result.student_name) == (3, 3, 100.0, "Maya")
    assert result.grading_id.startswith("grd_")
    (grading, values), (flag, flagged) = store.written
    assert "UPDATE gradings" in grading
    assert values[0] == "Maya"
    assert values[2:] == (3, 3, 100.0, False, GRADING, ORG)
    assert "UPDATE submissions" in flag
    assert flagged == (False, SUBMISSION, ORG)
    assert ctx.steps == [
        (10, "Loading reference material"),
        (30, "Finding the answers"),
        (60, "Grading answers"),
        (60, "Grading question 1 of 2"),
        (75, "Grading question 2 of 2"),
        (90, "Preparing results"),
    ]


def test_typed_answers_are_graded_without_a_submission() -> None:
    store = Store(grading=([{"question_id": "2", "text": "9.8"}, {"question_id": "99", "text": "x"}, "junk"], "Tobias"))
    result, _ = run(store, submission=None)
    assert [m.match for m in result.marks] == ["blank", "partial"]
    assert result.student_name == "Tobias"
    assert result.submission_id is None
    assert len(store.written) == 1


@pytest.mark.parametrize(
    ("store", "code"),
    [
        (Store(key=None), "grading.standard_missing"),
        (Store(grading=None), "grading.missing"),
        (Store(submission=None), "grading.submission_missing"),
        (Store(pages=[]), "grading.not_read"),
        (Store(submission=("Maya", None)), "grading.not_read"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_missing_fails_at_once_by_its_code(store: Store, code: str) -> None:
    with pytest.raises(PermanentError) as raised:
        run(store)
    assert raised.value.code == code
    assert store.written == []
