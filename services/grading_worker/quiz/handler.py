"""Loads what a grading names, marks it, and writes the marks in the transaction that finishes the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from services.grading_worker.grade import grade_quiz
from services.grading_worker.locate import locate
from shared.contracts import GRADING_QUIZ, AnswerKey, GivenAnswer, GradingPayload, Page, QuizResult
from shared.ids import IdKind, encode
from shared.jobs.context import Connection, Done, Handler, JobContext
from shared.jobs.errors import PermanentError

__all__ = ["build"]

# Answers typed in that are looked at; a key has at most 300 questions.
_MAX_TYPED: Final = 1000
_MAX_TEXT: Final = 20_000

_STANDARD: Final = "SELECT key FROM standard_versions WHERE standard_id = %s AND version = %s AND org_id = %s"
_GRADING: Final = "SELECT answers, student_name FROM gradings WHERE id = %s AND org_id = %s"
_SUBMISSION: Final = "SELECT student_name, document_id FROM submissions WHERE id = %s AND org_id = %s"
_PAGE_COLUMNS: Final = ("number", "width", "height", "rotation", "source", "confidence", "image_key", "lines")
_PAGES: Final = f"""
SELECT {", ".join(_PAGE_COLUMNS)}
  FROM document_pages WHERE document_id = %s AND org_id = %s ORDER BY number LIMIT 500
"""  # noqa: S608 - constants of this module
# Both states are accepted: grading again is how a corrected key or reading is taken in, and the last one stands.
# The name that somebody gave stays.
_WRITE_GRADING: Final = """
UPDATE gradings
   SET status = 'graded', student_name = coalesce(student_name, %(student_name)s), result = %(result)s,
       points = %(points)s, max_points = %(max_points)s, percentage = %(percentage)s,
       needs_review = %(needs_review)s, graded_at = now()
 WHERE id = %(id)s AND org_id = %(org_id)s AND status IN ('pending', 'graded')
"""
# Both states are accepted: a submission that is read again keeps the flag that an earlier reading's marks gave it.
# Marks without doubt take no flag away, which may be the reading's or another grading's.
_FLAG_SUBMISSION: Final = """
UPDATE submissions SET needs_review = true, updated_at = now()
 WHERE id = %s AND org_id = %s AND status IN ('reading', 'read') AND NOT needs_review
"""


def build(deps: Any) -> Handler[GradingPayload, QuizResult]:
    """The handler of ``grading.quiz``. It needs none of ``deps``."""
    return Handler(GRADING_QUIZ, run)


def run(ctx: JobContext, payload: GradingPayload) -> Done[QuizResult]:
    """Grades one quiz.

    Raises PermanentError: ``grading.standard_missing``, ``grading.missing``, ``grading.submission_missing``,
    ``grading.not_read``; the effect raises ``grading.missing`` when the grading went while it was marked.
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
    if pages:
        answers = {found.question_id: found.answer for found in locate(key, pages, ctx.check)}
    else:
        answers = _typed(key, typed)
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
        check=ctx.check,
    )
    ctx.progress(90, "Preparing results")
    ctx.log("graded", questions=len(result.marks), pages=len(pages), review=sum(m.needs_review for m in result.marks))

    def write(conn: Connection) -> None:
        written = conn.execute(
            _WRITE_GRADING,
            {
                "student_name": student_name,
                "result": Jsonb(result.model_dump(mode="json")),
                "points": result.points,
                "max_points": result.max_points,
                "percentage": result.percentage,
                "needs_review": result.needs_review,
                "id": payload.grading_id,
                "org_id": org_id,
            },
        )
        if written.rowcount == 0:
            # Else the job would announce marks that nobody can look up.
            raise _grading_missing()
        if payload.submission_id is not None and result.needs_review:
            conn.execute(_FLAG_SUBMISSION, (payload.submission_id, org_id))

    return Done(result, effects=(write,))


def _steps(ctx: JobContext) -> Callable[[int, int], None]:
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


def _rows(ctx: JobContext, sql: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    with ctx.connection() as conn, conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(sql, params).fetchall()


def _load_key(ctx: JobContext, payload: GradingPayload, org_id: UUID) -> AnswerKey:
    rows = _rows(ctx, _STANDARD, (payload.standard_id, payload.standard_version, org_id))
    if not rows:
        raise PermanentError(
            "grading.standard_missing",
            "The standard, or this version of it, no longer exists. Choose another one and grade again.",
            standard_version=payload.standard_version,
        )
    return AnswerKey.model_validate(rows[0][0])


def _load_grading(ctx: JobContext, payload: GradingPayload, org_id: UUID) -> tuple[list[Any], str | None]:
    rows = _rows(ctx, _GRADING, (payload.grading_id, org_id))
    if not rows:
        raise _grading_missing()
    return list(rows[0][0] or []), rows[0][1]


def _grading_missing() -> PermanentError:
    return PermanentError("grading.missing", "The grading was deleted before it was done. Start a new one.")


def _load_pages(ctx: JobContext, submission_id: UUID, org_id: UUID) -> tuple[str | None, list[Page]]:
    submissions = _rows(ctx, _SUBMISSION, (submission_id, org_id))
    if not submissions:
        raise PermanentError("grading.submission_missing", "The submission was deleted. Upload the work again.")
    student_name, document_id = submissions[0]
    pages: list[Page] = []
    for row in _rows(ctx, _PAGES, (document_id, org_id)):
        ctx.check()
        pages.append(Page.model_validate(dict(zip(_PAGE_COLUMNS, row, strict=True))))
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
