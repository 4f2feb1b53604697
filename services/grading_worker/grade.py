"""Grades a whole quiz: each answer by its kind, and the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.contracts import AnswerKey, GivenAnswer, QuestionMark, QuizResult

from .kinds import grade, kind_of, never

__all__ = ["grade_quiz"]


def grade_quiz(
    key: AnswerKey,
    answers: Mapping[str, GivenAnswer | None],
    *,
    grading_id: str,
    standard_id: str,
    standard_version: int,
    submission_id: str | None = None,
    student_name: str | None = None,
    on_question: Callable[[int, int], None] | None = None,
    check: Callable[[], None] = never,
) -> QuizResult:
    """The marks in the order of the key, and their sum.

    ``answers`` by question id as the key writes it. ``None``, or no entry: the question was not found,
    which is marked ``unreadable`` and reviewed. An empty text is a blank. ``on_question`` is called
    with (number, of how many) before each; ``check`` all along, to raise when this is to stop.
    ``percentage`` is 0–100 with one decimal.
    """
    marks = []
    for number, question in enumerate(key.questions, start=1):
        if on_question is not None:
            on_question(number, len(key.questions))
        given = answers.get(question.id)
        mark = grade(question, given, key, check)
        marks.append(
            QuestionMark(
                question_id=question.id,
                kind=kind_of(question).name,
                prompt=question.prompt,
                given=given.text if given is not None else "",
                expected=mark.expected,
                points=mark.points,
                max_points=question.points,
                match=mark.match,
                feedback=mark.feedback,
                confidence=mark.confidence,
                needs_review=mark.needs_review,
                review_reason=mark.review_reason,
                page=given.page if given is not None else None,
                box=given.box if given is not None else None,
            )
        )
    points, most = round(sum(m.points for m in marks), 4), key.max_points
    return QuizResult(
        grading_id=grading_id,
        standard_id=standard_id,
        standard_version=standard_version,
        submission_id=submission_id,
        student_name=student_name,
        points=points,
        max_points=most,
        percentage=min(100.0, round(100 * points / most, 1)),
        needs_review=any(m.needs_review for m in marks),
        marks=tuple(marks),
    )
