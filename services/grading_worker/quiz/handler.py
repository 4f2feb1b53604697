"""Loads what a grading names, marks it, and writes the marks in the transaction that finishes the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from services.grading_worker.grade import grade_quiz
from services.grading_worker.locate import locate
from shared.contracts import GRADING_QUIZ, AnswerKey, GivenAnswer, GradingPayload, Page, QuizResult
from shared.ids import IdKind, encode
from shared.jobs.context import Connection, Done, Handler, JobContext
from shared.jobs.errors import PermanentError

__all__ = ["build"]

# Answers typed in that are looked at; a key has at most 300 questions.
_MAX_TYPED = 1000
_MAX_TEXT = 20_000

_STANDARD = "SELECT key FROM standard_versions WHERE standard_id = %s AND version = %s AND org_id = %s"
_GRADING = "SELECT answers, student_name FROM gradings WHERE id = %s AND org_id = %s"
_SUBMISSION = "SELECT s.student_name, s.document_id FROM submissions s WHERE s.id = %s AND s.org_id = %s"
_PAGES = """
SELECT number, width, height, rotation, source, confidence, image_key, lines
FROM document_pages WHERE document_id = %s AND org_id = %s ORDER BY number LIMIT 500
"""
_WRITE_GRADING = """
UPDATE gradings
SET status = 'graded', student_name = coalesce(student_name, %s), result = %s::jsonb, points = %s, max_points = %s,
    percentage = %s, needs_review = %s, graded_at = now()
WHERE id = %s AND org_id = %s
"""
_FLAG_SUBMISSION = """
UPDATE submissions SET needs_review = needs_review OR %s, updated_at = now() WHERE id = %s AND org_id = %s
"""


def build(deps: Any) -> Handler[GradingPayload, QuizResult]:
    """The handler of ``grading.quiz``. It needs none of ``deps``."""
    return Handler(GRADING_QUIZ, run)


def run(ctx: JobContext, payload: GradingPayload) -> Done[QuizResult]:
    """Grades one quiz.

    Raises PermanentError: ``grading.standard_missing``, ``grading.missing``, ``grading.submission_missing``,
    ``grading.not_read``.
    """
    org_id = ctx.job.org_id
    ctx.progress(10, "Loading reference material")
    key = _load_key(ctx, payload, org_id)
    typed, student_name = _load_grading(ctx, payload, org_id)
    pages: list[Page] = []
    if payload.submission_id is not None:
        read_name, pages = _load_pages(ctx, payload.submission_id, org_id)
        student_name = student_name or read_name
    ctx.progress(30, "Finding the answers")
    answers: Mapping[str, GivenAnswer | None]
    answers = {found.question_id: found.answer for found in locate(key, pages)} if pages else _typed(key, typed)
    ctx.check()
    ctx.progress(60, "Grading answers")
    result = grade_quiz(
        key,
        answers,
        grading_id=encode(IdKind.GRADING, payload.grading_id),
        standard_id=encode(IdKind.STANDARD, payload.standard_id),
        standard_version=payload.standard_version,
        submission_id=encode(IdKind.SUBMISSION, payload.submission_id) if payload.submission_id else None,
        student_name=student_name,
        on_question=_steps(ctx),
    )
    ctx.progress(90, "Preparing results")
    ctx.log("graded", questions=len(result.marks), pages=len(pages), review=sum(m.needs_review for m in result.marks))

    def write(conn: Connection) -> None:
        # Any prior status is replaced: grading again is how a corrected reading is taken in.
        conn.execute(
            _WRITE_GRADING,
            (
                student_name, Jsonb(result.model_dump(mode="json")), result.points, result.max_points,
                result.percentage, result.needs_review, payload.grading_id, org_id,
            ),
        )  # fmt: skip
        if payload.submission_id is not None:
            conn.execute(_FLAG_SUBMISSION, (result.needs_review, payload.submission_id, org_id))

    return Done(result, effects=(write,))


def _steps(ctx: JobContext) -> Any:
    last = 60

    def step(number: int, total: int) -> None:
        nonlocal last
        percent = 60 + int(30 * (number - 1) / total)
        ctx.check()
        # One write a percent at most, however many questions there are.
        if percent > last or number == 1:
            last = percent
            ctx.progress(percent, f"Grading question {number} of {total}")

    return step


def _one(ctx: JobContext, sql: str, params: tuple[Any, ...]) -> tuple[Any, ...] | None:
    with ctx.connection() as conn:
        row: Any = conn.execute(sql, params).fetchone()
    return tuple(row.values()) if isinstance(row, Mapping) else row


def _load_key(ctx: JobContext, payload: GradingPayload, org_id: UUID) -> AnswerKey:
    row = _one(ctx, _STANDARD, (payload.standard_id, payload.standard_version, org_id))
    if row is None:
        raise PermanentError(
            "grading.standard_missing",
            "The standard, or this version of it, no longer exists. Choose another one and grade again.",
            standard_version=payload.standard_version,
        )
    return AnswerKey.model_validate(row[0])


def _load_grading(ctx: JobContext, payload: GradingPayload, org_id: UUID) -> tuple[list[Any], str | None]:
    row = _one(ctx, _GRADING, (payload.grading_id, org_id))
    if row is None:
        raise PermanentError("grading.missing", "The grading was deleted before it was done. Start a new one.")
    return list(row[0] or []), row[1]


def _load_pages(ctx: JobContext, submission_id: UUID, org_id: UUID) -> tuple[str | None, list[Page]]:
    row = _one(ctx, _SUBMISSION, (submission_id, org_id))
    if row is None:
        raise PermanentError("grading.submission_missing", "The submission was deleted. Upload the work again.")
    student_name, document_id = row
    pages: list[Page] = []
    if document_id is not None:
        names = ("number", "width", "height", "rotation", "source", "confidence", "image_key", "lines")
        with ctx.connection() as conn:
            rows: list[Any] = conn.execute(_PAGES, (document_id, org_id)).fetchall()
        for found in rows:
            ctx.check()
            values = found if isinstance(found, Mapping) else dict(zip(names, found, strict=True))
            pages.append(Page.model_validate(dict(values)))
    if not pages:
        raise PermanentError("grading.not_read", "The submission has not been read yet. Read it first, then grade it.")
    return student_name, pages


def _typed(key: AnswerKey, typed: list[Any]) -> dict[str, GivenAnswer | None]:
    """Typed answers by the key's ids. A question without one is blank; answers to unknown ones are dropped."""
    by_id: dict[str, str] = {}
    for entry in typed[:_MAX_TYPED]:
        if isinstance(entry, Mapping):
            by_id.setdefault(
                str(entry.get("question_id", "")).strip().casefold(), str(entry.get("text") or "")[:_MAX_TEXT]
            )
    return {q.id: GivenAnswer(question_id=q.id, text=by_id.get(q.id.casefold(), "")) for q in key.questions}
