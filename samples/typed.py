"""A homework typed on a computer: a PDF with a text layer and embedded fonts."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from content import Sheet
from fpdf import FPDF
from fpdf.enums import XPos, YPos
from pen import Fonts

__all__ = ["typed_pdf"]

FAMILY = "carlito"


class _Homework(FPDF):
    def __init__(self, title: str) -> None:
        super().__init__(format="A4")
        self.running_title = title

    def footer(self) -> None:
        self.set_y(-16)
        self.set_font("body", size=9)
        self.cell(0, 6, f"{self.running_title} · Page {self.page_no()}", align="C")


def typed_pdf(sheet: Sheet, fonts: Fonts) -> bytes:
    """The sheet as its student would hand it in from a word processor."""
    quiz = sheet.quiz
    pdf = _Homework(quiz.title)
    pdf.set_creation_date(datetime(2025, 5, 2, 16, 40, tzinfo=UTC))
    pdf.set_title(quiz.title)
    pdf.set_margins(22, 20)
    with tempfile.TemporaryDirectory() as folder:
        for style, weight in (("", 400), ("B", 700)):
            path = Path(folder) / f"{FAMILY}-{weight}.ttf"
            path.write_bytes(fonts.truetype(FAMILY, weight))
            pdf.add_font("body", style, path)
        pdf.add_page()

        def line(text: str, style: str = "", size: float = 11.5, height: float = 6.2, indent: float = 0) -> None:
            pdf.set_font("body", style, size)
            pdf.set_x(pdf.l_margin + indent)
            pdf.multi_cell(0, height, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

        line(quiz.title, "B", 18, 9)
        line(quiz.subtitle, size=12)
        pdf.ln(3)
        for label, value in (
            ("Name", sheet.name),
            ("School", sheet.school),
            ("Grade level", sheet.grade_level),
            ("Class", sheet.class_name),
            ("Date", sheet.date),
        ):
            line(f"{label}: {value}")
        pdf.ln(2)
        line(quiz.instructions, size=10)
        pdf.ln(3)
        for q in quiz.key["questions"]:
            if q["id"] in quiz.new_page_at:
                pdf.add_page()
            points = q["points"]
            line(f"{q['id']}. {q['prompt']} ({points} point{'s' if points != 1 else ''})", "B")
            for label, option in q.get("options", {}).items():
                line(f"{label}) {option}", indent=7)
            pdf.ln(1)
            line(f"Answer: {sheet.given[q['id']].text}".rstrip())
            pdf.ln(3.2)
        return bytes(pdf.output())
