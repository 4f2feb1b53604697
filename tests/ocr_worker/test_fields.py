from __future__ import annotations

import pytest

from services.ocr_worker.fields import find_fields
from shared.contracts import Line, Page, Word


def row(
    text: str, y: float, x: float = 50, confidence: float = 0.99, gap_after: dict[int, float] | None = None
) -> Line:
    """A line of words 10 px a character, 20 px high; ``gap_after`` widens the space after a word."""
    words = []
    for token in text.split():
        words.append(Word(text=token, confidence=confidence, box=(x, y, x + 10 * len(token), y + 20)))
        x += 10 * len(token) + 8
    box = (words[0].box[0], y, words[-1].box[2], y + 20)
    return Line(text=text, confidence=confidence, box=box, words=tuple(words))


def page(*lines: Line, number: int = 1) -> Page:
    return Page(number=number, width=1000, height=1400, source="ocr", confidence=0.9, lines=lines)


def values(*lines: Line) -> dict[str, str]:
    return {name: field.value for name, field in find_fields([page(*lines)]).items()}


def test_an_english_header() -> None:
    found = values(
        row("Name: Ada Lovelace", 100),
        row("School: Northfield Middle School Grade level: 8", 140),
        row("Class: 8b Date: 14 March 2025 Score: /20", 180),
    )
    assert found == {
        "student_name": "Ada Lovelace",
        "school": "Northfield Middle School",
        "grade_level": "8",
        "class_name": "8b",
        "date": "14 March 2025",
    }


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("Name: Jürgen Groß", "student_name", "Jürgen Groß"),
        ("Schüler: Jürgen Groß", "student_name", "Jürgen Groß"),
        ("Schule: Goethe-Gymnasium", "school", "Goethe-Gymnasium"),
        ("Klasse: 7a", "class_name", "7a"),
        ("Nom et prénom : Zoë Dupont", "student_name", "Zoë Dupont"),
        ("École : Jean Moulin", "school", "Jean Moulin"),
        ("Nombre y apellidos: José Niño", "student_name", "José Niño"),
        ("Fecha: 3/5/2025", "date", "3/5/2025"),
        ("Student's name: Ada", "student_name", "Ada"),
        ("Name:Ada", "student_name", "Ada"),
        ("Name _____ Ada", "student_name", "Ada"),
        ("NAME Ada Lovelace", "student_name", "Ada Lovelace"),
        ("Student name Ada", "student_name", "Ada"),
        ("1Grade level: 8", "grade_level", "8"),
    ],
)
def test_labels_in_four_languages_and_as_recognisers_mangle_them(text: str, field: str, value: str) -> None:
    found = find_fields([page(row(text, 100))])
    assert {name: f.value for name, f in found.items()} == {field: value}
    assert all(f.sure for f in found.values())


def test_a_value_written_as_a_line_of_its_own_on_the_same_row() -> None:
    assert values(row("Name:", 100), row("Ada Lovelace", 104, x=220)) == {"student_name": "Ada Lovelace"}


@pytest.mark.parametrize(
    "text",
    [
        "Year 8 Science - Unit 3 quiz",
        "Name three renewable energy sources.",
        "12. Name three rivers",
        "Student council meets today",
        "The name of the river is Nile",
        "Name:",
        "Name: ________",
        "Date ....",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    assert values(row(text, 100)) == {}


def test_a_question_below_the_header_is_no_header() -> None:
    assert values(row("Name: the largest planet", 900)) == {}


def test_the_number_of_a_question_may_stand_in_a_line_of_its_own() -> None:
    assert values(row("12.", 100, x=20), row("Name three rivers", 100, x=60)) == {}


def test_what_is_doubtful_is_flagged_not_dropped() -> None:
    unsure = find_fields([page(row("Name: Aba", 100, confidence=0.6), row("Grade level: 5 6 7 8", 140))])
    assert {name: (field.value, field.sure) for name, field in unsure.items()} == {
        "student_name": ("Aba", False),
        "grade_level": ("5 6 7 8", False),
    }


def test_two_answers_to_one_label_are_flagged() -> None:
    found = find_fields([page(row("Name: Ada", 100), row("Name: Grace", 200))])
    assert (found["student_name"].value, found["student_name"].sure) == ("Ada", False)


def test_a_value_knows_its_page_and_place() -> None:
    field = find_fields([page(), page(row("Name: Ada", 100), number=2)])["student_name"]
    assert field.page == 2
    assert field.box == (108, 100, 138, 120)
    assert field.as_json() == {"value": "Ada", "confidence": 0.99, "page": 2, "box": [108, 100, 138, 120], "sure": True}
