"""From loose pieces of text with places to lines in reading order. Pure geometry; no image, no OCR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from shared.contracts import Box, Line, Word

__all__ = ["Fragment", "arrange", "mean_confidence", "union"]

# Of the lower height: how far two pieces' middles may lie apart and still be on one row.
_SAME_ROW = 0.5
# Times the height: a wider gap is another column, table cell or label, hence another Line.
_SAME_LINE_GAP = 1.2
# Pieces whose heights differ more (a heading beside a note) stay apart.
_SAME_LINE_HEIGHTS = 2.0


@dataclass(frozen=True, slots=True)
class Fragment:
    """One piece of a row as found: its words, upright bounding box and slope (dy/dx, 0 when level)."""

    words: tuple[Word, ...]
    box: Box
    slope: float = 0.0

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around ``boxes`` (at least one)."""
    return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def mean_confidence(lines: Sequence[Line]) -> float:
    """Mean over words; 0 when there is none."""
    values = [word.confidence for line in lines for word in line.words]
    return sum(values) / len(values) if values else 0.0


def arrange(fragments: Sequence[Fragment]) -> tuple[Line, ...]:
    """Rows from top to bottom, each from left to right; near neighbours on one row become one Line.

    The page's own tilt (median slope, by width) is taken out first, so that a photographed page's rows hold together.
    """
    if not fragments:
        return ()
    tilt = _tilt(fragments)

    def middle(fragment: Fragment) -> float:
        x0, y0, x1, y1 = fragment.box
        return (y0 + y1) / 2 - tilt * (x0 + x1) / 2

    rows: list[tuple[float, float, list[Fragment]]] = []  # running middle, height, members
    for fragment in sorted(fragments, key=middle):
        here = middle(fragment)
        if rows:
            row_middle, row_height, members = rows[-1]
            if here - row_middle <= _SAME_ROW * min(row_height, fragment.height):
                count = len(members)
                members.append(fragment)
                rows[-1] = (
                    (row_middle * count + here) / (count + 1),
                    (row_height * count + fragment.height) / (count + 1),
                    members,
                )
                continue
        rows.append((here, fragment.height, [fragment]))
    return tuple(line for _, _, members in rows for line in _lines_of_row(members))


def _tilt(fragments: Sequence[Fragment]) -> float:
    level = [f for f in fragments if f.width > 2 * f.height]
    return median([f.slope for f in level]) if len(level) >= 3 else 0.0


def _lines_of_row(members: list[Fragment]) -> list[Line]:
    members.sort(key=lambda f: f.box[0])
    groups: list[list[Fragment]] = []
    for fragment in members:
        if groups and _joins(groups[-1][-1], fragment):
            groups[-1].append(fragment)
        else:
            groups.append([fragment])
    return [_line(group) for group in groups]


def _joins(left: Fragment, right: Fragment) -> bool:
    low, high = sorted((left.height, right.height))
    if high > _SAME_LINE_HEIGHTS * max(low, 1e-9):
        return False
    gap = right.box[0] - left.box[2]
    return -high <= gap <= _SAME_LINE_GAP * high


def _line(group: list[Fragment]) -> Line:
    words = tuple(word for fragment in group for word in fragment.words)
    letters = sum(len(word.text) for word in words) or 1
    return Line(
        text=" ".join(word.text for word in words),
        confidence=min(1.0, sum(word.confidence * len(word.text) for word in words) / letters),
        box=union([fragment.box for fragment in group]),
        words=words,
    )
