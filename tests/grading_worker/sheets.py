"""Keys, answers and hand-made pages for the grading tests."""

from __future__ import annotations

from typing import Any

from shared.contracts import AnswerKey, GivenAnswer, Line, Page


def key_of(*questions: dict[str, Any], locale: str = "en") -> AnswerKey:
    numbered = [{"id": str(i), **q} for i, q in enumerate(questions, start=1)]
    return AnswerKey.model_validate({"questions": numbered, "locale": locale})


def given(text: str, confidence: float = 1.0) -> GivenAnswer:
    return GivenAnswer(question_id="1", text=text, confidence=confidence)


def line(text: str, x: float, y: float, *, width: float | None = None, height: float = 30, conf: float = 0.95) -> Line:
    return Line(text=text, confidence=conf, box=(x, y, x + (width or 14.0 * len(text)), y + height))


def page(*lines: Line, number: int = 1, confidence: float = 0.95) -> Page:
    return Page(number=number, width=1600, height=2200, source="ocr", confidence=confidence, lines=lines)


def sheet(*texts: str, number: int = 1, conf: float = 0.95) -> Page:
    """A page with one line box a text, one under the other."""
    return page(*(line(t, 100, 100 + 50 * i, conf=conf) for i, t in enumerate(texts)), number=number)
