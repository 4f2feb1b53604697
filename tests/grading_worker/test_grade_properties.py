"""What holds for any text at all."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from services.grading_worker.grade import grade_quiz
from services.grading_worker.kinds import REVIEW_BELOW, grade
from services.grading_worker.locate import locate
from shared.contracts import GivenAnswer
from tests.grading_worker.sheets import given, key_of, line, page

KEY = key_of(
    {"kind": "single_choice", "options": {"A": "Venus", "B": "Mars"}, "answer": "B", "prompt": "Which planet is red?"},
    {"kind": "multiple_choice", "options": {"A": "ice", "B": "oil", "C": "air"}, "answers": ["A", "C"], "points": 3},
    {"kind": "true_false", "answer": True, "prompt": "Water is wet."},
    {"kind": "numeric", "answer": 9.8, "unit": "m/s²", "tolerance": {"absolute": 0.1}, "points": 2},
    {"kind": "short_text", "answers": ["photosynthesis"], "keywords": ["light", "carbon dioxide"], "points": 2},
    {"kind": "list", "items": [["red"], ["green"], ["blue", "azure"]], "points": 3, "ordered": True},
)
# Plain text, and text made of what the parsers look for.
SOUP = st.text(alphabet="0123456789.,/^*×xeE+-−=%°µΩπ√()[]{}\\ \nABCabcIlOS|_;:•–and or m/s²½⁻¹✓✗", max_size=120)
ANSWERS = st.one_of(st.text(max_size=200), SOUP)


@settings(max_examples=300, deadline=2000)
@each(ANSWERS, st.floats(0, 1), st.sampled_from(KEY.questions))
def test_points_stay_within_bounds_and_nothing_raises(text: str, confidence: float, question: Any) -> None:
    mark = grade(question, given(text, confidence), KEY)
    assert 0 <= mark.points <= question.points
    assert 0 <= mark.confidence <= 1
    assert mark.feedback.endswith((".", "!"))
    if mark.points and confidence < 0.6:
        assert mark.needs_review
    assert mark.needs_review or mark.confidence >= REVIEW_BELOW
    if mark.review_reason is not None:
        assert mark.review_reason.endswith(".")
        assert mark.review_reason[0].isupper()


@settings(max_examples=150, deadline=2000)
@each(st.floats(-1e9, 1e9, allow_nan=False), st.sampled_from(["en", "de", "fr", "es"]))
def test_the_key_number_as_typed_in_its_locale_is_right(value: float, locale: str) -> None:
    key = key_of({"kind": "numeric", "answer": round(value, 4), "tolerance": {"relative": 1e-9}}, locale=locale)
    text = f"{round(value, 4):.4f}".replace(".", "." if locale == "en" else ",")
    assert grade(key.questions[0], given(text), key).points == 1


@settings(max_examples=150, deadline=2000)
@each(st.text(min_size=1, max_size=60).filter(lambda t: any(c.isalnum() for c in t)))
def test_the_accepted_text_as_typed_is_right(text: str) -> None:
    key = key_of({"kind": "short_text", "answers": [text]})
    assert grade(key.questions[0], given(text), key).points == 1


@pytest.mark.parametrize("question", KEY.questions, ids=lambda q: q.kind)
@pytest.mark.parametrize(
    "text",
    [
        "9" * 20000,
        "m/s" * 6000,
        "a, " * 6000,
        "1/" * 9000,
        "(" * 20000,
        "-" * 20000 + "a",
        "9**9**9**9",
        "1e999999999",
        "red and " * 2500,
        "10^99999",
        "x10^" * 4000,
        "1 " * 9000,
        "A " * 9000,
        "\\frac{" * 3000,
        "km^9" * 3000,
        "kilo" * 10,
    ],
    ids=lambda t: t[:8],
)
def test_hostile_texts_take_bounded_time(question: Any, text: str) -> None:
    began = time.monotonic()
    grade(question, given(text[:20000], 0.9), KEY)
    assert time.monotonic() - began < 5


@settings(max_examples=60, deadline=5000)
@each(st.lists(st.tuples(ANSWERS, st.integers(0, 1500), st.integers(0, 2000), st.integers(1, 90)), max_size=25))
def test_any_page_can_be_graded(boxes: list[tuple[str, int, int, int]]) -> None:
    read = page(*(line(t, x, y, height=h) for t, x, y, h in boxes))
    answers = {f.question_id: f.answer for f in locate(KEY, [read])}
    assert list(answers) == [q.id for q in KEY.questions]
    result = grade_quiz(KEY, answers, grading_id="grd_x", standard_id="std_x", standard_version=1)
    assert 0 <= result.points <= result.max_points == KEY.max_points
    assert 0 <= result.percentage <= 100
    assert result.needs_review == any(m.needs_review for m in result.marks)


def test_a_quiz_answered_as_the_key_wants_is_worth_all_points() -> None:
    right = ["B", "A, C", "True", "9.8 m/s²", "photosynthesis", "red, green, blue"]
    answers = {q.id: GivenAnswer(question_id=q.id, text=t) for q, t in zip(KEY.questions, right, strict=True)}
    result = grade_quiz(KEY, answers, grading_id="grd_x", standard_id="std_x", standard_version=1)
    assert (result.points, result.percentage, result.needs_review) == (12, 100.0, False)


def test_percentage_has_one_decimal() -> None:
    answers = {"1": given("B")}
    result = grade_quiz(KEY, answers, grading_id="grd_x", standard_id="std_x", standard_version=1)
    assert result.percentage == 8.3
    assert [m.match for m in result.marks] == ["exact"] + ["unreadable"] * 5
    assert result.needs_review


def test_a_long_answer_to_a_key_of_many_forms_takes_bounded_time() -> None:
    items = [[f"item number {i} alpha", *(f"variant {i}{j} beta" for j in range(8))] for i in range(50)]
    key = key_of({"kind": "list", "items": items})
    began = time.monotonic()
    grade(key.questions[0], given("word item alpha beta number and variant " * 500, 0.9), key)
    assert time.monotonic() - began < 10
