"""Each kind gives the points that a careful teacher gives, and says when it is not sure."""

from __future__ import annotations

from typing import Any

import pytest

from services.grading_worker.kinds import Mark, grade, kinds
from shared.contracts import AnswerKey
from tests.grading_worker.sheets import given, key_of

SINGLE = {
    "kind": "single_choice",
    "options": {"A": "Venus", "B": "Mars", "C": "Jupiter", "D": "Saturn"},
    "answer": "B",
    "points": 2,
}
MULTIPLE = {
    "kind": "multiple_choice",
    "options": {"A": "sea water", "B": "pure gold", "C": "air", "D": "iron", "E": "milk"},
    "answers": ["A", "C"],
    "points": 2,
}
GRAVITY = {"kind": "numeric", "answer": 9.8, "unit": "m/s²", "tolerance": {"absolute": 0.1}, "points": 2}


def mark(question: dict[str, Any], text: str, confidence: float = 1.0, locale: str = "en") -> Mark:
    key = key_of(question, locale=locale)
    return grade(key.questions[0], given(text, confidence), key)


@pytest.mark.parametrize(
    ("text", "points", "match"),
    [
        ("B", 2, "exact"),
        ("b", 2, "exact"),
        ("B)", 2, "exact"),
        ("(B)", 2, "exact"),
        ("B.", 2, "exact"),
        ("Option B", 2, "exact"),
        ("The answer is B", 2, "exact"),
        ("B) Mars", 2, "exact"),
        ("B Mars", 2, "exact"),
        ("✓ B", 2, "exact"),
        ("Mars", 2, "equivalent"),
        ("mars.", 2, "equivalent"),
        ("Jupitre", 0, "wrong"),
        ("A", 0, "wrong"),
        ("C) Jupiter", 0, "wrong"),
        ("Venus", 0, "wrong"),
    ],
)
def test_single_choice_takes_letters_and_words(text: str, points: float, match: str) -> None:
    m = mark(SINGLE, text)
    assert (m.points, m.match, m.needs_review) == (points, match, False)


@pytest.mark.parametrize("text", ["A, B", "A/B", "AB", "8", "B) Jupiter", "Pluto", "E"])
def test_single_choice_sends_the_unclear_to_a_person(text: str) -> None:
    assert mark(SINGLE, text).needs_review


def test_two_letters_earn_nothing_where_one_is_asked_for() -> None:
    assert mark(SINGLE, "A, B").points == 0


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("A, C", 2),
        ("C A", 2),
        ("AC", 2),
        ("a and c", 2),
        ("A; C", 2),
        ("A + C", 2),
        ("A\nC", 2),
        ("A) sea water, C) air", 2),
        ("sea water and air", 2),
        ("A", 1),
        ("A, B, C", 1),
        ("A, B", 0),
        ("B, D", 0),
        ("A, B, C, D, E", 0),
        ("A und C", 2),
    ],
)
def test_multiple_choice_pays_for_right_and_charges_for_wrong(text: str, points: float) -> None:
    m = mark(MULTIPLE, text)
    assert m.points == points
    assert not m.needs_review


@pytest.mark.parametrize(("text", "points"), [("A, C", 2), ("A", 0), ("A, B, C", 0)])
def test_all_or_nothing(text: str, points: float) -> None:
    assert mark(MULTIPLE | {"scoring": "all_or_nothing"}, text).points == points


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("T", True),
        ("true.", True),
        ("TRUE", True),
        ("wahr", True),
        ("Richtig", True),
        ("vrai", True),
        ("Verdadero", True),
        ("ja", True),
        ("Sí", True),
        ("✓", True),
        ("yes", True),
        ("R", True),
        ("V", True),
        ("False", False),
        ("F", False),
        ("falsch", False),
        ("Faux", False),
        ("falso", False),
        ("✗", False),
        ("no", False),
        ("not true", False),
        ("nicht richtig", False),
        ("True, because it is denser", True),
        ("It is false", False),
    ],
)
def test_true_false_reads_words_and_signs(text: str, value: bool) -> None:
    for answer in (True, False):
        m = mark({"kind": "true_false", "answer": answer}, text)
        assert m.points == (1 if answer is value else 0)
        assert not m.needs_review


@pytest.mark.parametrize("text", ["True / False", "x", "Tru3", "7rue", "Fa1se", "banana", "true and false"])
def test_true_false_sends_the_unclear_to_a_person(text: str) -> None:
    assert mark({"kind": "true_false", "answer": True}, text).needs_review


@pytest.mark.parametrize(
    ("text", "locale", "answer"),
    [
        ("1234.5", "en", 1234.5),
        ("1,234.5", "en", 1234.5),
        ("1 234.5", "en", 1234.5),
        ("1'234.5", "en", 1234.5),
        ("1.234,5", "de", 1234.5),
        ("1 234,5", "fr", 1234.5),
        ("1\u202f234,5", "fr", 1234.5),
        ("1.234,5", "es", 1234.5),
        ("1,234", "en", 1234),
        ("1.234", "en", 1.234),
        ("1.234", "de", 1234),
        ("1,234", "de", 1.234),
        ("3,5", "de", 3.5),
        ("3,5", "en", 3.5),
        ("0,5", "fr", 0.5),
        (".5", "en", 0.5),
        ("1,234,567", "en", 1234567),
        ("1.000.000", "de", 1000000),
        ("16.500,00", "fr", 16500),
        ("−7", "en", -7),
        ("- 7", "en", -7),
        ("+7", "en", 7),
        ("–7", "en", -7),
        ("3/4", "en", 0.75),
        ("-5/4", "en", -1.25),
        ("1 1/2", "en", 1.5),
        ("1½", "en", 1.5),
        ("¾", "en", 0.75),
        ("\\frac{9}{3}", "en", 3),
        ("3×10⁸", "en", 3e8),
        ("3.0 x 10^8", "en", 3e8),
        ("3·10^8", "de", 3e8),
        ("3e8", "en", 3e8),
        ("6,02 · 10^23", "de", 6.02e23),
        ("1.5 x 10^-3", "en", 0.0015),
        ("10^-3", "en", 0.001),
        ("x = 2.5", "en", 2.5),
        ("5*2 = 10", "en", 10),
        ("about 42", "en", 42),
        ("99π", "en", 311.0176727053895),
        ("twelve", "en", 12),
        ("zwölf", "de", 12),
        ("25%", "en", 0.25),
        ("25%", "en", 25),
        ("12 apples", "en", 12),
    ],
)
def test_numbers_are_read_as_they_are_written(text: str, locale: str, answer: float) -> None:
    m = mark({"kind": "numeric", "answer": answer}, text, locale=locale)
    assert m.points == 1
    assert not m.needs_review


@pytest.mark.parametrize(
    ("text", "points", "match"),
    [
        ("9.8 m/s²", 2, "exact"),
        ("9.8 m/s2", 2, "exact"),
        ("9.8m/s^2", 2, "exact"),
        ("9,8 m/s²", 2, "exact"),
        ("9.81 m s⁻²", 2, "within_tolerance"),
        ("9.9 m/s²", 2, "within_tolerance"),
        ("980 cm/s²", 2, "equivalent"),
        ("9.8 N/kg", 2, "equivalent"),
        ("9.8", 1, "partial"),
        ("9.8 m/s", 1, "partial"),
        ("9.8 kg", 1, "partial"),
        ("9.8 km/s²", 1, "partial"),
        ("42 m/s²", 0, "wrong"),
        ("g = 9.8 m/s²", 2, "exact"),
    ],
)
def test_units_are_converted_and_a_missing_one_costs_its_share(text: str, points: float, match: str) -> None:
    m = mark(GRAVITY, text)
    assert (m.points, m.match, m.needs_review) == (points, match, False)


def test_feedback_says_what_is_missing() -> None:
    assert mark(GRAVITY, "9.8").feedback == "The number is right, but the unit is missing: write m/s²."
    assert mark(GRAVITY, "9.81 m/s2").feedback == "Right: 9.81 m/s² is within 0.1 of the expected value."


@pytest.mark.parametrize(
    ("text", "unit", "answer"),
    [
        ("20 °C", "°C", 20),
        ("20°C", "°C", 20),
        ("20 C", "°C", 20),
        ("68 °F", "°C", 20),
        ("20 degrees Celsius", "°C", 20),
        ("36 km/h", "m/s", 10),
        ("36 kmh", "m/s", 10),
        ("2 Stunden", "h", 2),
        ("1500 ml", "l", 1.5),
        ("250 g", "kg", 0.25),
        ("3 Kg", "kg", 3),
        ("25 %", "%", 25),
        ("4 apples", "apple", 4),
        ("5 €", "EUR", 5),
        ("12 cm3", "cm³", 12),
        ("4 square metres", "m²", 4),
        ("3 Ohm", "Ω", 3),
        ("0.5 µm", "m", 5e-7),
        ("90 min", "h", 1.5),
    ],
)
def test_units_in_the_words_of_pupils(text: str, unit: str, answer: float) -> None:
    m = mark({"kind": "numeric", "answer": answer, "unit": unit, "tolerance": {"relative": 1e-6}}, text)
    assert m.points == 1
    assert not m.needs_review


@pytest.mark.parametrize(
    ("text", "answer", "unit"),
    [
        ("1O.5", 10.5, None),
        ("l2", 12, None),
        ("S", 5, None),
        ("9. 8", 9.8, None),
        ("3x108", 3e8, None),
        ("1B cm", 18, "cm"),
        ("3 m/5", 3, "m/s"),
        ("20 0C", 20, "°C"),
        ("9.8 m/s?", 9.8, "m/s²"),
    ],
)
def test_a_number_right_only_after_replacing_lookalikes_is_reviewed(text: str, answer: float, unit: str | None) -> None:
    m = mark({"kind": "numeric", "answer": answer, "unit": unit}, text, 0.9)
    assert m.points == 1
    assert m.needs_review
    assert m.review_reason is not None
    assert f"mixed up in “{text}” (reading confidence 0.90)." in m.review_reason


def test_a_separator_that_can_be_read_either_way_is_reviewed_when_the_other_way_is_right() -> None:
    m = mark({"kind": "numeric", "answer": 1234}, "1.234")
    assert (m.points, m.needs_review) == (1, True)


@pytest.mark.parametrize("text", ["3 or 4", "3 oder 4"])
def test_alternatives_earn_nothing_and_are_reviewed(text: str) -> None:
    m = mark({"kind": "numeric", "answer": 4}, text)
    assert (m.points, m.needs_review) == (0, True)


def test_a_lost_decimal_point_is_a_doubt_only_where_an_image_was_read() -> None:
    assert mark(GRAVITY, "98 m/s²", 0.9).needs_review
    assert not mark(GRAVITY, "98 m/s²").needs_review


def test_just_outside_the_tolerance_is_wrong_and_reviewed() -> None:
    m = mark(GRAVITY, "10 m/s²")
    assert (m.points, m.match, m.needs_review) == (0, "close", True)


PHOTO = {"kind": "short_text", "answers": ["photosynthesis"], "points": 2}


@pytest.mark.parametrize(
    ("text", "feedback"),
    [
        ("10", "The number is right, but the unit is missing: write m/s."),
        ("10 km/h", "The number is right, but the unit is not: it should be m/s."),
        ("50 km/h", "This is not the expected value."),
    ],
)
def test_a_unit_without_which_nothing_is_earned_is_named(text: str, feedback: str) -> None:
    m = mark({"kind": "numeric", "answer": 10, "unit": "m/s", "unit_credit": 0}, text)
    assert (m.points, m.match, m.feedback, m.needs_review) == (0, "wrong", feedback, False)


@pytest.mark.parametrize(
    ("scoring", "text", "feedback"),
    [
        ("partial", "A", "A is right; 1 more is missing."),
        (
            "partial",
            "A, B",
            "A is right; B is not; 1 more is missing. Each wrong option takes away what a right one earns.",
        ),
        ("partial", "B, D", "B and D are not right."),
        ("all_or_nothing", "C", "C is right; 1 more is missing. There are points for the complete answer only."),
    ],
)
def test_feedback_says_why_the_points_are_what_they_are(scoring: str, text: str, feedback: str) -> None:
    assert mark(MULTIPLE | {"scoring": scoring}, text).feedback == feedback


COLOURS = {"kind": "list", "items": [["red"], ["green"], ["blue", "azure"]], "points": 3}


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("red, green, blue", 3),
        ("blue; red; green", 3),
        ("red green blue", 3),
        ("red and green and azure", 3),
        ("- red\n- green\n- blue", 3),
        ("1. red\n2. green\n3. blue", 3),
        ("1. red 2. green 3. blue", 3),
        ("• red • blue", 2),
        ("red, red, red", 1),
        ("red, yellow", 1),
        ("yellow", 0),
        ("red & green / blue", 3),
        ("rot und green", 1),
        ("a) red b) green", 2),
        ("red,\ngreen,\nand blue", 3),
    ],
)
def test_lists_are_split_and_assigned(text: str, points: float) -> None:
    assert mark(COLOURS, text).points == points


def test_an_ordered_list_pays_for_what_is_in_place() -> None:
    q = COLOURS | {"ordered": True}
    assert mark(q, "red, green, blue").points == 3
    assert mark(q, "green, red, blue").points == 2
    assert mark(q, "green, blue").points == 2
    assert mark(q, "blue, green, red").points == 1


def test_only_the_required_number_is_asked_for() -> None:
    assert mark(COLOURS | {"required": 2}, "red, azure").points == 3
    assert mark(COLOURS | {"required": 2}, "red").points == 1.5


def test_an_item_with_and_in_it_stays_whole() -> None:
    q = {"kind": "list", "items": [["salt and pepper"], ["oil"]], "points": 2}
    assert mark(q, "salt and pepper, oil").points == 2


def test_two_spellings_of_one_item_count_once() -> None:
    assert mark(COLOURS, "blue, azure").points == 1


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (SINGLE, "B"),
        (MULTIPLE, "A, C"),
        (GRAVITY, "9.8 m/s²"),
        (PHOTO, "photosynthesis"),
        (COLOURS, "red, green, blue"),
        ({"kind": "true_false", "answer": True}, "True"),
    ],
)
class TestForEveryKind:
    def test_a_right_answer_read_badly_is_reviewed(self, question: dict[str, Any], text: str) -> None:
        m = mark(question, text, 0.55)
        assert m.points > 0
        assert m.review_reason == f"Hard to read; taken as “{text}” (reading confidence 0.55)."
        assert m.confidence <= 0.6

    def test_a_right_answer_read_well_is_not(self, question: dict[str, Any], text: str) -> None:
        m = mark(question, text, 0.9)
        assert not m.needs_review
        assert m.confidence > 0.9

    def test_blank_earns_nothing_and_is_reviewed_on_a_poor_page_only(self, question: dict[str, Any], text: str) -> None:
        for blank in ("", "  ", "-", "___"):
            good, poor = mark(question, blank, 0.9), mark(question, blank, 0.4)
            assert (good.points, good.match, good.needs_review) == (0, "blank", False)
            assert (poor.points, poor.match, poor.needs_review) == (0, "blank", True)

    def test_a_question_not_found_is_unreadable_and_reviewed(self, question: dict[str, Any], text: str) -> None:
        key = key_of(question)
        m = grade(key.questions[0], None, key)
        assert (m.points, m.match, m.needs_review) == (0, "unreadable", True)


def test_every_kind_of_the_contract_has_its_module() -> None:
    declared = AnswerKey.model_json_schema()["$defs"]
    names = {d["properties"]["kind"]["const"] for d in declared.values() if "kind" in d.get("properties", {})}
    assert names == set(kinds())
