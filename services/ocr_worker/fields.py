"""The header of a worksheet: name, school, grade, class, date, found by their labels. Pure functions over pages.

Nothing is guessed: a value stands right of its label on one row, or there is none. What is there but doubtful is
given with ``sure=False`` and a person looks at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from shared.contracts import Box, Line, Page, Word

__all__ = ["Field", "FieldName", "find_fields"]

FieldName = Literal["student_name", "school", "grade_level", "class_name", "date"]

# English, German, French, Spanish. Longest first within a field is not needed: the longest match wins.
_LABELS: Final[dict[FieldName, tuple[str, ...]]] = {
    "student_name": (
        "name", "student name", "student's name", "name of student", "full name", "student", "pupil", "pupil name",
        "schüler", "schülerin", "name des schülers", "vor- und nachname", "vorname", "nachname",
        "nom", "nom et prénom", "prénom", "nom de l'élève", "élève",
        "nombre", "nombre y apellido", "nombre y apellidos", "nombre del alumno", "alumno", "alumna",
    ),
    "school": ("school", "school name", "name of school", "schule", "école", "établissement", "escuela", "colegio"),
    "grade_level": (
        "grade", "grade level", "year", "year group", "jahrgang", "klassenstufe", "jahrgangsstufe", "niveau", "grado",
    ),
    "class_name": ("class", "form", "klasse", "classe", "clase", "curso"),
    "date": ("date", "datum", "fecha"),
}  # fmt: skip

# Words that begin a title or a sentence as often as a label ("Year 8 Science", "Student council"): a label only with
# a colon or a ruled line after it, or with nothing near it.
_NEEDS_MARK: Final = frozenset(
    (
        *("student", "pupil", "form", "year", "class", "date", "élève", "alumno", "alumna", "schüler", "schülerin"),
        *("klasse", "classe", "clase", "curso", "niveau", "jahrgang", "datum", "fecha"),
    )
)
# Labels of what we do not look for: they end the value before them.
_OTHER_LABELS: Final = frozenset(
    (
        *("score", "mark", "marks", "points", "total", "teacher", "subject", "period", "room", "seat", "id", "number"),
        *("punkte", "note", "fach", "lehrer", "lehrerin", "professeur", "matière", "profesor", "profesora", "materia"),
    )
)
# Only the top of the first page is a header; below, "Name three rivers" is a question.
_HEADER_SHARE: Final = 0.35
# A value may stand this many label heights right of the label.
_REACH: Final = 14.0
_MAX_WORDS: Final = 8
_MAX_LABEL_WORDS: Final = 5
_WIDE_GAP: Final = 1.0  # in heights of the label
_MARK: Final = re.compile(r"[:：_.…]+$")
_RULE: Final = re.compile(r"^[_.…\-–—=:]+$")
# Specks and the ends of ruled lines, as recognisers read them, that cling to the label after them.
_BEFORE_LABEL: Final = "0123456789|[](){}/_.,;-–—* "
_TRIM: Final = " _.:：;,…|-–—=/\\"
# Below this a value is not taken on trust.
_SURE: Final = 0.90


@dataclass(frozen=True, slots=True)
class Field:
    """A value as read. ``box`` in pixels of the image of ``page``; ``sure`` is False when a person should look."""

    value: str
    confidence: float
    page: int
    box: Box
    sure: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "confidence": round(self.confidence, 4),
            "page": self.page,
            "box": [round(side, 1) for side in self.box],
            "sure": self.sure,
        }


@dataclass(frozen=True, slots=True)
class _Label:
    field: FieldName
    line: int
    start: int  # index of its first word in the line
    end: int  # one past its last
    box: Box
    marked: bool
    confidence: float  # of its last word
    rest: str  # what stands in its last word after the colon: "Name:Ada" is one word to the recogniser


def find_fields(pages: Sequence[Page]) -> dict[FieldName, Field]:
    """The header fields of the first page that has any, in the order of the page. Absent ones are absent."""
    for page in pages:
        found = _on_page(page)
        if found:
            return found
    return {}


def _on_page(page: Page) -> dict[FieldName, Field]:
    limit = page.height * _HEADER_SHARE
    lines = [line for line in page.lines if line.words and line.box[1] <= limit]
    labels = [label for index, line in enumerate(lines) for label in _labels(index, line)]
    found: dict[FieldName, Field] = {}
    doubtful: set[FieldName] = set()
    marked: set[FieldName] = set()
    for label in sorted(labels, key=lambda label: not label.marked):  # a colon outranks a bare word
        if not label.marked and _follows_something(label, lines):
            continue
        words, rest = _value_words(label, labels, lines)
        if not label.marked and not words:
            continue
        field = _field(label, words, rest, page.number)
        if field is None:
            continue
        if label.field not in found:
            found[label.field] = field
            if label.marked:
                marked.add(label.field)
        elif label.field in marked and not label.marked:
            continue
        elif found[label.field].value.casefold() != field.value.casefold():
            doubtful.add(label.field)  # two labels, two answers: which one counts is not ours to say
    return {
        name: Field(f.value, f.confidence, f.page, f.box, f.sure and name not in doubtful) for name, f in found.items()
    }


def _labels(index: int, line: Line) -> Iterator[_Label]:
    at = 0
    while at < len(line.words):
        label = _label_at(index, line, at)
        if label is None:
            at += 1
        else:
            yield label
            at = label.end


def _label_at(index: int, line: Line, start: int) -> _Label | None:
    for end in range(min(len(line.words), start + _MAX_LABEL_WORDS), start, -1):
        words = line.words[start:end]
        joined = " ".join(word.text for word in words)
        head, colon, rest = joined.replace("：", ":").partition(":")
        if colon and len(head.split()) < len(words):
            continue  # the colon ends the label; what follows is the value
        text = _MARK.sub("", head).strip(" _.").casefold()
        if colon and words[0].text.strip(_BEFORE_LABEL):
            text = text.lstrip(_BEFORE_LABEL)
        field = _FIELD_OF.get(text) or _FIELD_OF.get(text.replace(" ", ""))
        if field is None:
            continue
        follows = line.words[end].text if end < len(line.words) else ""
        marked = bool(colon) or bool(_MARK.search(joined)) or bool(_RULE.match(follows))
        if not marked and not (start == 0 and _stands_apart(line, end, text)):
            continue
        boxes = [word.box for word in words]
        box = (boxes[0][0], min(b[1] for b in boxes), boxes[-1][2], max(b[3] for b in boxes))
        return _Label(field, index, start, end, box, marked, words[-1].confidence, rest.strip(_TRIM))
    return None


def _stands_apart(line: Line, end: int, text: str) -> bool:
    """Without a colon (recognisers drop them): the label is all of its line, a wide gap follows it, it is in capitals,
    or it is of several words or unlikely to begin a title, and little follows."""
    if end >= len(line.words) or _gap(line.words[end - 1], line.words[end]) > _WIDE_GAP:
        return True
    if line.words[end - 1].text.isupper():
        return True
    following = line.words[end:]
    return (
        text not in _NEEDS_MARK
        and line.words[end - 1].text[:1].isalpha()
        and len(following) <= _MAX_WORDS // 2
        and not following[-1].text.endswith((".", "?", "!"))  # a sentence: "Name three rivers."
    )


def _follows_something(label: _Label, lines: Sequence[Line]) -> bool:
    """Something stands close before it, such as the number of a question: "12. Name three rivers"."""
    reach = 4 * max(1.0, label.box[3] - label.box[1])
    return any(
        _same_row(word.box, label.box) and 0 <= label.box[0] - word.box[2] < reach
        for line in lines
        for word in line.words
    )


def _gap(left: Word, right: Word) -> float:
    """In heights of the left word."""
    return (right.box[0] - left.box[2]) / max(1.0, left.box[3] - left.box[1])


def _value_words(label: _Label, labels: Sequence[_Label], lines: Sequence[Line]) -> tuple[list[Word], str]:
    """Words right of the label on its row, up to the next label or a gap too wide to belong."""
    top, bottom = label.box[1], label.box[3]
    height = max(1.0, bottom - top)
    starts = [other.box[0] for other in labels if other is not label and _same_row(other.box, label.box)]
    stop = min((x for x in starts if x > label.box[2] - height), default=float("inf"))
    own = {(label.line, i) for i in range(label.start, label.end)}
    row = [
        word
        for index, line in enumerate(lines)
        for position, word in enumerate(line.words)
        if (index, position) not in own
        and _same_row(word.box, label.box)
        and word.box[0] >= label.box[2] - 0.5 * height
        and word.box[0] < stop
    ]
    row.sort(key=lambda word: word.box[0])
    taken: list[Word] = []
    edge = label.box[2]
    for word in row:
        if (word.box[0] - edge) > (_REACH * height if not taken else 4 * height):
            break
        known = word.text.rstrip(":").casefold() in _OTHER_LABELS
        if (taken or label.rest) and (word.text.endswith(":") or known):
            break
        edge = word.box[2]
        if not _RULE.match(word.text):
            taken.append(word)
        if len(taken) == _MAX_WORDS:
            break
    return taken, label.rest


def _same_row(a: Box, b: Box) -> bool:
    overlap = min(a[3], b[3]) - max(a[1], b[1])
    return overlap > 0.4 * min(a[3] - a[1], b[3] - b[1])


def _field(label: _Label, words: Sequence[Word], rest: str, page: int) -> Field | None:
    text = " ".join(part for part in (rest, *(word.text for word in words)) if part).strip(_TRIM)
    if not text or not any(character.isalnum() for character in text):
        return None
    boxes = [word.box for word in words] or [label.box]
    box = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    confidence = min((*([label.confidence] if rest else []), *(word.confidence for word in words)))
    sure = confidence >= _SURE and _plausible(label.field, text)
    return Field(text, confidence, page, box, sure)


def _plausible(field: FieldName, text: str) -> bool:
    if field == "student_name":
        return len(text) >= 2 and not any(character.isdigit() for character in text) and len(text.split()) <= 5
    if field == "grade_level":
        # "5 6 7 8": choices to circle, and which one is circled is not in the text.
        return len(re.findall(r"\d+", text)) <= 1 and len(text.split()) <= 3
    if field == "date":
        return any(character.isdigit() for character in text)
    if field == "class_name":
        return not text.isdecimal() or len(text) == 1  # "86" is more often a hastily written 8b
    return len(text) >= 2 and not text[0].isdigit()


_FIELD_OF: Final[dict[str, FieldName]] = {
    spelling: field
    for field, labels in _LABELS.items()
    for label in labels
    for spelling in (label, label.replace(" ", ""))  # recognisers drop spaces
}
