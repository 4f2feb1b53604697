"""Line boxes of a reading, put in the order in which a person reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from services.grading_worker.wording import squeeze
from shared.contracts import Box, GivenAnswer, Line, Page, Word

__all__ = ["Fragment", "Piece", "answer_from", "reading_order"]

MAX_LINES = 4000
MAX_LINE = 1000
_FURNITURE = re.compile(
    r"^\W*(?:page|seite|página|pagina|blatt|sheet|p\.)\s*\d{1,3}(?:\s*(?:of|/|von|sur|de)\s*\d{1,3})?\W*$|^\W*\d{1,3}\s*/\s*\d{1,3}\W*$",
    re.IGNORECASE,
)
# What sheets print at their end or between pages.
_CLOSING = re.compile(
    r"^\W*(?:end of (?:the |this )?(?:quiz|test|exam|paper|questions|worksheet)|ende (?:des|der) |fin d[ue]\b|fin del\b"
    r"|good luck|viel erfolg|bonne chance|buena suerte|please turn over|turn over|bitte wenden|check your answers)",
    re.IGNORECASE,
)
# Two boxes are on one line when they overlap in height by this share of the lower one.
_SAME_LINE = 0.5


@dataclass(frozen=True, slots=True)
class Fragment:
    """One line box. ``first`` says that nothing stands left of it on its line."""

    page: int
    text: str
    confidence: float
    box: Box
    words: tuple[Word, ...]
    first: bool

    @property
    def height(self) -> float:
        return max(1.0, self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a fragment's text."""

    fragment: Fragment
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.fragment.text[self.start : self.end]

    def cut(self, start: int) -> Piece:
        """Without the first ``start`` characters."""
        return Piece(self.fragment, min(self.end, self.start + start), self.end)


def reading_order(
    pages: Iterable[Page], starts_question: Callable[[str], bool], check: Callable[[], None]
) -> list[Fragment]:
    """The line boxes of all pages in reading order, at most MAX_LINES, without page numbers and running heads.

    A page is read as two columns only where question numbers begin on both sides of a gutter:
    an answer box right of a question is no column. ``check`` is called all along.
    """
    ordered = sorted(pages, key=lambda p: p.number)
    running = _running_heads(ordered)
    out: list[Fragment] = []
    for page in ordered:
        lines = [
            line
            for line in page.lines
            if line.text.strip()
            and not _FURNITURE.match(line.text)
            and not _CLOSING.match(line.text)
            and (page.number, id(line)) not in running
        ]
        for group in _columns(lines[:MAX_LINES], page.width, starts_question, check):
            for row in _rows(group, check):
                for i, line in enumerate(row):
                    text = line.text[:MAX_LINE]
                    out.append(Fragment(page.number, text, line.confidence, line.box, line.words, i == 0))
        if len(out) >= MAX_LINES:
            break
    return out[:MAX_LINES]


def _running_heads(pages: Sequence[Page]) -> set[tuple[int, int]]:
    """Lines at the top or bottom edge that a later page repeats at the same height."""
    seen: dict[str, float] = {}
    repeated: set[tuple[int, int]] = set()
    for page in pages:
        for line in page.lines[:MAX_LINES]:
            height = line.box[1] / max(1, page.height)
            if 0.1 < height < 0.9:
                continue
            key = re.sub(r"\d+", "#", squeeze(line.text))
            if len(key) >= 6 and abs(seen.get(key, -9.0) - height) < 0.03:
                repeated.add((page.number, id(line)))
            else:
                seen.setdefault(key, height)
    return repeated


def _columns(
    lines: Sequence[Line], page_width: int, starts_question: Callable[[str], bool], check: Callable[[], None]
) -> list[list[Line]]:
    """The lines in groups to be read one after the other."""
    numbered = [line for line in lines if starts_question(line.text)]
    if len(numbered) < 4:
        return [list(lines)]
    width = max(1.0, page_width)
    best: tuple[int, float] | None = None
    for gutter in sorted({line.box[0] for line in numbered})[1:]:
        check()
        if not 0.3 < gutter / width < 0.75:
            continue
        edge = gutter - 0.01 * width
        crossing = sum(1 for line in lines if line.box[0] < edge and line.box[2] > gutter + 0.02 * width)
        on_left = sum(1 for line in numbered if line.box[0] < edge - 0.2 * width)
        on_right = sum(1 for line in numbered if line.box[0] >= edge)
        if min(on_left, on_right) < 2 or crossing > 0.15 * len(lines):
            continue
        if best is None or crossing < best[0]:
            best = (crossing, edge)
    if best is None:
        return [list(lines)]
    edge = best[1]
    groups: list[list[Line]] = []
    left_side: list[Line] = []
    right_side: list[Line] = []
    for line in sorted(lines, key=lambda li: li.box[1]):
        if line.box[0] < edge and line.box[2] > edge + 0.03 * width:
            # A heading over both columns: what is above it is read before.
            groups += [left_side, right_side, [line]]
            left_side, right_side = [], []
        else:
            (left_side if line.box[0] < edge else right_side).append(line)
    return [g for g in (*groups, left_side, right_side) if g]


def _rows(lines: Iterable[Line], check: Callable[[], None]) -> list[list[Line]]:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda li: ((li.box[1] + li.box[3]) / 2, li.box[0])):
        check()
        for row in rows[-3:]:
            top, bottom = row[0].box[1], row[0].box[3]
            overlap = min(bottom, line.box[3]) - max(top, line.box[1])
            beside = all(
                line.box[0] >= r.box[2] - 0.3 * _width(r) or line.box[2] <= r.box[0] + 0.3 * _width(r) for r in row
            )
            if beside and overlap >= _SAME_LINE * max(1.0, min(bottom - top, line.box[3] - line.box[1])):
                row.append(line)
                break
        else:
            rows.append([line])
    for row in rows:
        row.sort(key=lambda li: li.box[0])
    rows.sort(
        key=lambda row: min(median((li.box[1] + li.box[3]) / 2 for li in row), (row[0].box[1] + row[0].box[3]) / 2)
    )
    return rows


def _width(line: Line) -> float:
    return max(1.0, line.box[2] - line.box[0])


def answer_from(question_id: str, text: str, pieces: Sequence[Piece]) -> GivenAnswer:
    """The answer that ``pieces`` make, with the mean confidence of what was used, weighted by length.

    The box is the union of the pieces on the first one's page; a part of a line takes its words' boxes,
    or its share of the line's width where there are none.
    """
    weight = total = 0.0
    page = pieces[0].fragment.page
    box: Box | None = None
    for piece in pieces:
        words = _words_of(piece)
        for confidence, length in words or [(piece.fragment.confidence, len(piece.text.strip()))]:
            weight += length
            total += confidence * length
        if piece.fragment.page == page:
            b = _box_of(piece)
            box = b if box is None else (min(box[0], b[0]), min(box[1], b[1]), max(box[2], b[2]), max(box[3], b[3]))
    confidence = total / weight if weight else pieces[0].fragment.confidence
    return GivenAnswer(
        question_id=question_id, text=text[:20_000], confidence=min(1.0, max(0.0, confidence)), page=page, box=box
    )


def _word_spans(fragment: Fragment) -> list[tuple[int, int, Word]]:
    """Where each word stands in the line's text; empty where words and text do not agree."""
    out = []
    at = 0
    for word in fragment.words:
        found = fragment.text.find(word.text, at)
        if not word.text or found < 0:
            return []
        at = found + len(word.text)
        out.append((found, at, word))
    return out


def _words_of(piece: Piece) -> list[tuple[float, int]]:
    return [
        (w.confidence, min(b, piece.end) - max(a, piece.start))
        for a, b, w in _word_spans(piece.fragment)
        if a < piece.end and b > piece.start and any(c.isalnum() for c in w.text)
    ]


def _box_of(piece: Piece) -> Box:
    fragment = piece.fragment
    if piece.start == 0 and piece.end == len(fragment.text):
        return fragment.box
    boxes = [w.box for a, b, w in _word_spans(fragment) if a < piece.end and b > piece.start and a >= piece.start]
    if boxes:
        return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    x0, y0, x1, y1 = fragment.box
    per_char = (x1 - x0) / max(1, len(fragment.text))
    return (x0 + per_char * piece.start, y0, x0 + per_char * piece.end, y1)
