"""The job ``grading.quiz`` on real rows: what it loads and for whom, what it says on the way, what it writes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.grading_worker.quiz import build
from shared.contracts import GRADING_QUIZ, GradingPayload, Page, QuizResult
from shared.ids import IdKind, encode
from shared.jobs import Done, PermanentError
from tests.grading_worker.rows import Rows
from tests.grading_worker.running import RunningJob
from tests.grading_worker.sheets import key_of, sheet

KEY = key_of(
    {"kind": "single_choice", "options": {"A": "Venus", "B": "Mars"}, "answer": "B"},
    {"kind": "numeric", "answer": 9.8, "unit": "m/s²", "points": 2},
)
ALL_RIGHT = [sheet("1. B", "2. 9.8 m/s2")]
# Two letters where one is asked for: wrong, and for a person to look at.
IN_DOUBT = [sheet("1. A, B", "2. 9.8 m/s2")]


class Quiz:
    """A submission that was read, and its grading as the gateway accepted it."""

    def __init__(
        self,
        rows: Rows,
        pages: list[Page] = ALL_RIGHT,
        *,
        read_name: str | None = "Maya",
        given_name: str | None = None,
    ) -> None:
        self.rows = rows
        self.document_id = rows.document()
        self.submission_id: UUID = rows.submission(self.document_id, read_name)
        self.standard_id = rows.standard(KEY)
        rows.read(self.document_id, pages)
        self.grading_id: UUID = rows.grading(self.standard_id, self.submission_id, student_name=given_name)

    @property
    def payload(self) -> GradingPayload:
        return GradingPayload(
            grading_id=self.grading_id,
            submission_id=self.submission_id,
            standard_id=self.standard_id,
            standard_version=1,
        )

    @property
    def grading(self) -> dict[str, Any]:
        return self.rows.one("gradings", self.grading_id)

    @property
    def submission(self) -> dict[str, Any]:
        return self.rows.one("submissions", self.submission_id)


def job(rows: Rows, attempt: int = 1) -> RunningJob:
    return RunningJob(rows.pool, rows.org_id, GRADING_QUIZ.name, attempt)


def mark(ctx: RunningJob, payload: GradingPayload) -> Done[QuizResult]:
    handler = build(SimpleNamespace(settings=None, storage=None))
    assert handler.job_type is GRADING_QUIZ
    done = handler.run(ctx, payload)
    assert isinstance(done, Done)
    return done


def graded(rows: Rows, payload: GradingPayload) -> QuizResult:
    """Marked and committed."""
    ctx = job(rows)
    done = mark(ctx, payload)
    ctx.finish(done)
    return done.result


def test_a_submission_is_graded_and_written_with_the_result(rows: Rows) -> None:
    quiz = Quiz(rows)
    ctx = job(rows)
    done = mark(ctx, quiz.payload)
    assert quiz.grading["status"] == "pending", "nothing is written before the job ends"

    ctx.finish(done)

    row = quiz.grading
    assert (row["status"], row["points"], row["max_points"], row["percentage"]) == ("graded", 3, 3, 100)
    assert (row["needs_review"], row["student_name"], row["graded_at"] is not None) == (False, "Maya", True)
    assert QuizResult.model_validate(row["result"]) == done.result
    assert done.result.grading_id == encode(IdKind.GRADING, quiz.grading_id)
    assert done.result.submission_id == encode(IdKind.SUBMISSION, quiz.submission_id)
    assert not quiz.submission["needs_review"]
    assert ctx.steps == [
        (10, "Loading reference material"),
        (30, "Finding the answers"),
        (60, "Grading answers"),
        (60, "Grading question 1 of 2"),
        (75, "Grading question 2 of 2"),
        (90, "Preparing results"),
    ]


def test_typed_answers_are_graded_without_a_submission(rows: Rows) -> None:
    standard_id = rows.standard(KEY)
    typed = [{"question_id": "2", "text": "9.8"}, {"question_id": "99", "text": "x"}, "junk"]
    grading_id = rows.grading(standard_id, answers=typed, student_name="Tobias")
    payload = GradingPayload(grading_id=grading_id, standard_id=standard_id, standard_version=1)
    result = graded(rows, payload)
    assert [m.match for m in result.marks] == ["blank", "partial"]
    assert (result.student_name, result.submission_id) == ("Tobias", None)
    assert rows.one("gradings", grading_id)["points"] == 1


@pytest.mark.parametrize(
    ("lose", "code"),
    [
        (lambda quiz: quiz.rows.execute("delete from document_pages"), "grading.not_read"),
        (lambda quiz: quiz.rows.execute("delete from gradings"), "grading.missing"),
        (lambda quiz: setattr(quiz, "standard_id", uuid4()), "grading.standard_missing"),
        (lambda quiz: setattr(quiz, "submission_id", uuid4()), "grading.submission_missing"),
    ],
    ids=["unread", "grading", "standard", "submission"],
)
def test_what_is_missing_fails_at_once_by_its_code(rows: Rows, lose: Callable[[Quiz], object], code: str) -> None:
    quiz = Quiz(rows)
    lose(quiz)
    with pytest.raises(PermanentError) as raised:
        mark(job(rows), quiz.payload)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ("standard_id", "grading.standard_missing"),
        ("grading_id", "grading.missing"),
        ("submission_id", "grading.submission_missing"),
    ],
)
def test_what_is_another_organisations_is_not_found(rows: Rows, part: str, code: str) -> None:
    ours, theirs = Quiz(rows), Quiz(rows.another_organisation())
    setattr(ours, part, getattr(theirs, part))
    with pytest.raises(PermanentError) as raised:
        mark(job(rows), ours.payload)
    assert raised.value.code == code


def test_pages_of_another_organisation_are_not_read(rows: Rows) -> None:
    quiz = Quiz(rows)
    rows.execute("update document_pages set org_id = %s", rows.another_organisation().org_id)
    with pytest.raises(PermanentError) as raised:
        mark(job(rows), quiz.payload)
    assert raised.value.code == "grading.not_read"


def test_a_crash_before_the_commit_leaves_nothing_and_the_next_attempt_writes_once(rows: Rows) -> None:
    quiz = Quiz(rows, IN_DOUBT)
    before = quiz.grading
    first = job(rows)
    first.finish(mark(first, quiz.payload), crash=True)
    assert quiz.grading == before
    assert not quiz.submission["needs_review"]

    second = job(rows, attempt=2)
    second.finish(mark(second, quiz.payload))
    assert (quiz.grading["status"], quiz.grading["points"]) == ("graded", 2)
    assert rows.execute("update gradings set points = points") == 1, "one row still"


def test_grading_again_takes_in_a_corrected_reading(rows: Rows) -> None:
    quiz = Quiz(rows, IN_DOUBT)
    assert graded(rows, quiz.payload).points == 2
    rows.execute("delete from document_pages")
    rows.read(quiz.document_id, ALL_RIGHT)
    assert graded(rows, quiz.payload).points == 3
    row = quiz.grading
    assert (row["status"], row["points"], row["needs_review"]) == ("graded", 3, False)


def test_a_grading_deleted_while_it_is_marked_fails_the_job_and_flags_nothing(rows: Rows) -> None:
    quiz = Quiz(rows, IN_DOUBT)
    ctx = job(rows)
    done = mark(ctx, quiz.payload)
    rows.execute("delete from gradings")
    with pytest.raises(PermanentError) as raised:
        ctx.finish(done)
    assert raised.value.code == "grading.missing"
    assert not quiz.submission["needs_review"]


def test_a_grading_that_changed_hands_is_not_written(rows: Rows) -> None:
    quiz = Quiz(rows)
    ctx = job(rows)
    done = mark(ctx, quiz.payload)
    rows.execute("update gradings set org_id = %s", rows.another_organisation().org_id)
    with pytest.raises(PermanentError):
        ctx.finish(done)
    assert quiz.grading["status"] == "pending"


@pytest.mark.parametrize(
    ("given", "read", "kept"), [("Ada", "Adn", "Ada"), (None, "Maya", "Maya"), ("Ada", None, "Ada"), (None, None, None)]
)
def test_the_name_that_was_given_is_kept_before_the_one_that_was_read(
    rows: Rows, given: str | None, read: str | None, kept: str | None
) -> None:
    quiz = Quiz(rows, read_name=read, given_name=given)
    assert graded(rows, quiz.payload).student_name == kept
    assert quiz.grading["student_name"] == kept
    assert quiz.submission["student_name"] == read


def test_a_name_entered_while_marking_stays(rows: Rows) -> None:
    quiz = Quiz(rows)
    ctx = job(rows)
    done = mark(ctx, quiz.payload)
    rows.execute("update gradings set student_name = 'Corrected'")
    ctx.finish(done)
    assert quiz.grading["student_name"] == "Corrected"


def test_doubtful_marks_flag_the_submission_and_certain_ones_do_not_unflag_it(rows: Rows) -> None:
    quiz = Quiz(rows, IN_DOUBT)
    assert graded(rows, quiz.payload).needs_review
    assert quiz.grading["needs_review"]
    assert quiz.submission["needs_review"]
    rows.execute("delete from document_pages")
    rows.read(quiz.document_id, ALL_RIGHT)
    assert not graded(rows, quiz.payload).needs_review
    assert quiz.submission["needs_review"], "that is for the person who looks at it"


def test_another_submission_is_left_alone(rows: Rows) -> None:
    quiz, other = Quiz(rows, IN_DOUBT), Quiz(rows)
    graded(rows, quiz.payload)
    assert (other.grading["status"], other.submission["needs_review"]) == ("pending", False)


def test_blank_pages_leave_every_question_to_a_person(rows: Rows) -> None:
    quiz = Quiz(rows, [Page(number=1, width=1600, height=2200, source="blank", confidence=0)])
    result = graded(rows, quiz.payload)
    assert (result.points, result.needs_review) == (0, True)
    assert {m.match for m in result.marks} == {"unreadable"}
    assert quiz.submission["needs_review"]


def test_pages_are_taken_in_their_order(rows: Rows) -> None:
    quiz = Quiz(rows, [sheet("2. 9.8 m/s2", number=2), sheet("1. B", number=1)])
    assert [m.page for m in graded(rows, quiz.payload).marks] == [1, 2]
