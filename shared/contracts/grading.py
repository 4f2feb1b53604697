"""What grading takes and yields."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from .contract import Contract
from .reading import Box, Confidence

__all__ = ["GivenAnswer", "GradingPayload", "MatchKind", "QuestionMark", "QuizResult"]

MatchKind = Literal["exact", "equivalent", "within_tolerance", "close", "partial", "wrong", "blank", "unreadable"]


class GivenAnswer(Contract):
    """What a student answered to one question, as read or as typed."""

    question_id: str
    text: Annotated[str, Field(max_length=20_000)]
    confidence: Confidence = 1.0  # of the reading; typed answers are certain
    page: int | None = None
    box: Box | None = None


class GradingPayload(Contract):
    """Either a submission (its reading is the source) or ``answers`` typed in, never both."""

    grading_id: UUID
    submission_id: UUID | None = None
    standard_id: UUID
    standard_version: int


class QuestionMark(Contract):
    """One question's mark. ``feedback`` is a sentence a pupil understands."""

    question_id: str
    kind: str
    prompt: str
    given: str
    expected: str
    points: float
    max_points: float
    match: MatchKind
    feedback: str
    confidence: Confidence  # that these points are what a careful teacher would give
    needs_review: bool
    review_reason: str | None = None
    page: int | None = None
    box: Box | None = None


class QuizResult(Contract):
    grading_id: str
    standard_id: str
    standard_version: int
    submission_id: str | None
    student_name: str | None
    points: float
    max_points: float
    percentage: float
    needs_review: bool
    marks: tuple[QuestionMark, ...]
