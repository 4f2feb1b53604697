"""What reading a document yields: pages, lines and words with their places and confidence."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from .contract import Contract

__all__ = ["Box", "Confidence", "Line", "OcrPayload", "OcrProvider", "OcrResult", "Page", "PageSummary", "Word"]

Confidence = Annotated[float, Field(ge=0, le=1)]
# x0, y0, x1, y1 in pixels of the page image as served (after rotation), origin at the top left.
Box = tuple[float, float, float, float]
OcrProvider = Literal["local"]


class Word(Contract):
    text: str
    confidence: Confidence
    box: Box


class Line(Contract):
    text: str
    confidence: Confidence
    box: Box
    words: tuple[Word, ...] = ()


class Page(Contract):
    """One page as read. ``width``/``height`` are the pixels of its stored image."""

    number: int = Field(ge=1)
    width: int
    height: int
    rotation: Literal[0, 90, 180, 270] = 0  # degrees clockwise applied to make the page upright
    source: Literal["text_layer", "ocr", "blank"]
    confidence: Confidence  # mean over words; 1 for a sound text layer, 0 for a blank page
    lines: tuple[Line, ...] = ()
    image_key: str | None = None  # where the page image lies in object storage

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


class OcrPayload(Contract):
    document_id: UUID
    submission_id: UUID | None = None
    provider: OcrProvider = "local"


class PageSummary(Contract):
    number: int
    source: Literal["text_layer", "ocr", "blank"]
    lines: int
    confidence: Confidence


class OcrResult(Contract):
    """The job's result; the full reading is at ``GET /documents/{id}`` and on the submission."""

    document_id: str
    submission_id: str | None
    pages: tuple[PageSummary, ...]
    confidence: Confidence
    needs_review: bool
    student_name: str | None = None
    school: str | None = None
    grade_level: str | None = None
