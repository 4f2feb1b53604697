"""Sets a quiz on A4: one mask for the print, one for the ink, so that each gets its own colour and wear."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from content import Answer, Quiz, Sheet
from pen import Fonts, Hand, Layer, tremble
from PIL import Image, ImageDraw

__all__ = ["DPI", "SheetPage", "pages"]

DPI = 400  # twice the scan's, so that skew and warp are taken from spare resolution
WIDTH_MM, HEIGHT_MM = 210.0, 297.0
LEFT, RIGHT = 24.0, 190.0
PRINT_FAMILY = "arimo"


def _px(mm: float) -> int:
    return round(mm * DPI / 25.4)


def _pt(points: float) -> int:
    return round(points * DPI / 72)


@dataclass(frozen=True)
class SheetPage:
    """Coverage 0..255 of toner and of ink, at ``DPI``."""

    toner: Layer
    ink: Layer


class _Canvas:
    def __init__(self, fonts: Fonts, hand: Hand, rng: np.random.Generator) -> None:
        size = (_px(WIDTH_MM), _px(HEIGHT_MM))
        self.toner, self.ink = Image.new("L", size, 0), Image.new("L", size, 0)
        self.draw = ImageDraw.Draw(self.toner)
        self._fonts, self._hand, self._rng = fonts, hand, rng

    def text(self, x: float, y: float, text: str, points: float = 12, weight: int = 400, anchor: str = "ls") -> float:
        """Print at the baseline ``y``; the x after it. Millimetres."""
        font = self._fonts.sized(PRINT_FAMILY, _pt(points), weight)
        self.draw.text((_px(x), _px(y)), text, font=font, fill=255, anchor=anchor)
        return x + font.getlength(text) * 25.4 / DPI

    def wrap(self, text: str, width: float, points: float = 12) -> list[str]:
        font = self._fonts.sized(PRINT_FAMILY, _pt(points), 400)
        lines: list[str] = []
        for word in text.split():
            if lines and font.getlength(f"{lines[-1]} {word}") <= _px(width):
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def rule(self, x0: float, y: float, x1: float, weight: float = 0.22) -> None:
        self.draw.line((_px(x0), _px(y), _px(x1), _px(y)), fill=215, width=max(1, _px(weight)))

    def pen(self, x: float, y: float, text: str, scale: float = 1.0) -> None:
        """Handwriting that stands about on the rule ``y``."""
        off_x, off_y = self._rng.uniform(2.0, 6.0), self._rng.uniform(0.5, 1.3)
        self._hand.write(self.ink, text, _px(x + off_x), _px(y - off_y), scale)

    def field(self, x: float, y: float, label: str, x1: float, value: str, scale: float = 1.0) -> None:
        start = self.text(x, y, label, 12) + 1.5
        self.rule(start, y + 0.7, x1)
        if value:
            self.pen(start - 1.0, y + 0.7, value, scale)

    def done(self) -> SheetPage:
        return SheetPage(np.asarray(self.toner), tremble(np.asarray(self.ink), self._rng))


def _header(c: _Canvas, sheet: Sheet) -> float:
    quiz = sheet.quiz
    c.text(LEFT, 26, quiz.title, 19, 700)
    c.text(LEFT, 33.5, quiz.subtitle, 12)
    c.field(LEFT, 48, "Name:", 122, sheet.name)
    c.field(128, 48, "Class:", RIGHT, sheet.class_name)
    c.field(LEFT, 61, "School:", 122, sheet.school, 0.93)
    c.field(128, 61, "Grade level:", RIGHT, sheet.grade_level)
    c.field(LEFT, 74, "Date:", 122, sheet.date)
    end = c.text(128, 74, "Score:", 12)
    c.text(RIGHT, 74, f"/ {quiz.max_points:g}", 12, anchor="rs")
    c.rule(end + 1.5, 74.7, RIGHT - 10)
    c.rule(LEFT, 82, RIGHT, 0.45)
    c.text(LEFT, 88.5, quiz.instructions, 10)
    return 101.0


def _figure(c: _Canvas, kind: str, x: float, y: float) -> float:
    """Draw in the box right and below (x, y); its height. Millimetres."""
    line = max(1, _px(0.35))
    if kind == "spring":
        for shift, coils, length in ((0.0, 7, 16.0), (30.0, 7, 23.0)):
            left = x + shift
            c.draw.line((_px(left), _px(y), _px(left + 16), _px(y)), fill=255, width=2 * line)
            top, step = y + 3, (length - 3) / (2 * coils)
            zig = [(left + 8, y), (left + 8, top)]
            zig += [(left + 8 + (3.2 if i % 2 else -3.2), top + step * (i + 0.5)) for i in range(2 * coils)]
            zig += [(left + 8, y + length), (left + 8, y + length + 2)]
            c.draw.line([(_px(a), _px(b)) for a, b in zig], fill=255, width=line, joint="curve")
        box = [_px(v) for v in (x + 34, y + 25, x + 42, y + 32)]
        c.draw.rectangle(box, outline=255, width=line, fill=90)
        return 34.0
    for cx, radius, teeth in ((x + 12, 10.0, 35), (x + 27.3, 3.6, 10)):
        outline = []
        for i in range(teeth * 4):
            angle = 2 * math.pi * i / (teeth * 4)
            r = radius + (1.1 if i % 4 in (0, 1) else 0.0)
            outline.append((_px(cx + r * math.cos(angle)), _px(y + 12 + r * math.sin(angle))))
        c.draw.polygon(outline, outline=255, width=line)
        hub = [_px(v) for v in (cx - 1.1, y + 10.9, cx + 1.1, y + 13.1)]
        c.draw.ellipse(hub, outline=255, width=line)
    return 25.0


def _question(c: _Canvas, quiz: Quiz, q: dict[str, object], given: Answer, y: float) -> float:
    """Set one question from the baseline ``y`` on; the baseline of the next one."""
    qid, points = str(q["id"]), float(str(q["points"]))
    indent = LEFT + 9
    beside = qid in quiz.beside
    c.text(LEFT, y, f"{qid}.", 12, 700)
    c.text(RIGHT, y, f"({points:g} point{'s' if points != 1 else ''})", 10, anchor="rs")
    for i, line in enumerate(c.wrap(str(q["prompt"]), 82 if beside else RIGHT - indent - 20)):
        y += 5.6 if i else 0.0
        c.text(indent, y, line)
    options = q.get("options")
    if isinstance(options, dict):
        columns = 2 if qid in quiz.two_columns else 1
        for i, (label, option) in enumerate(options.items()):
            if i % columns == 0:
                y += 6.8
            c.text(indent + 2 + (i % columns) * 60, y, f"{label}) {option}")
    if beside:
        c.field(120, y + 1.5, "Answer:", 172, given.text)
        return y + 17
    if qid in quiz.figures:
        y += 4
        y += _figure(c, quiz.figures[qid], indent + 42, y) - 4
    y += 12
    start = c.text(indent, y, "Answer:") + 1.5
    last = start + 70 if str(q["kind"]) not in {"short_text", "list"} else RIGHT
    for i in range(quiz.answer_lines.get(qid, 1)):
        y += 11 if i else 0
        c.rule(start, y + 0.7, last)
        if i < len(given.lines):
            c.pen(start, y + 0.7, given.lines[i])
    return y + 17


def pages(sheet: Sheet, fonts: Fonts, hand: Hand, rng: np.random.Generator) -> Iterator[SheetPage]:
    """The sheet, page by page, each drawn from ``rng`` in order."""
    quiz = sheet.quiz
    questions = quiz.key["questions"]
    total = quiz.page_of(questions[-1]["id"])
    for number in range(1, total + 1):
        c = _Canvas(fonts, hand, rng)
        if number == 1:
            y = _header(c, sheet)
        else:
            c.text(LEFT, 18, quiz.title, 9)
            c.rule(LEFT, 20.5, RIGHT)
            y = 34.0
        for q in questions:
            if quiz.page_of(q["id"]) == number:
                y = _question(c, quiz, q, sheet.given[q["id"]], y)
        if number == total:
            c.text(WIDTH_MM / 2, y + 4, "End of the quiz. Check your answers.", 10, anchor="ms")
        assert y < 280, f"page {number} overflows"
        c.text(WIDTH_MM / 2, 286, f"Page {number} of {total}", 9, anchor="ms")
        yield c.done()
