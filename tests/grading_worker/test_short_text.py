"""A word or a sentence: what form and spelling may differ in, and what a person has to look at."""

from __future__ import annotations

from typing import Any

import pytest

from services.grading_worker.kinds import REVIEW_BELOW, Mark, grade
from tests.grading_worker.sheets import given, key_of


def mark(question: dict[str, Any], text: str, confidence: float = 1.0) -> Mark:
    key = key_of(question)
    return grade(key.questions[0], given(text, confidence), key)


PHOTO = {"kind": "short_text", "answers": ["photosynthesis"], "points": 2}


@pytest.mark.parametrize(
    ("text", "points", "match"),
    [
        ("photosynthesis", 2, "exact"),
        ("Photosynthesis", 2, "equivalent"),
        ("the photo-synthesis.", 2, "equivalent"),
        ("photosinthesis", 2, "close"),
        ("fotosynthesis", 2, "close"),
        ("It is photosynthesis", 2, "equivalent"),
        ("respiration", 0, "wrong"),
    ],
)
def test_short_text_forgives_form_and_spelling(text: str, points: float, match: str) -> None:
    m = mark(PHOTO, text)
    assert (m.points, m.match, m.needs_review) == (points, match, False)


@pytest.mark.parametrize(
    ("accepted", "text"),
    [
        ("hypertonic", "hypotonic"),
        ("mitosis", "meiosis"),
        ("nitrate", "nitrite"),
        ("endothermic", "exothermic"),
        ("increase", "decrease"),
        ("symmetrical", "asymmetrical"),
        ("ethane", "ethene"),
    ],
)
def test_another_word_is_no_spelling_mistake(accepted: str, text: str) -> None:
    assert mark({"kind": "short_text", "answers": [accepted]}, text).points == 0


@pytest.mark.parametrize(
    ("accepted", "text", "points"),
    [
        ("1945", "1946", 0),
        ("May 8, 1945", "8 May 1945", 1),
        ("DNA", "RNA", 0),
        ("vitamin A", "vitamin", 0),
        ("Größe", "Groesse", 1),
        ("Müller", "Muller", 1),
        ("l'eau", "eau", 1),
        ("der Hund", "Hund", 1),
        ("Île-de-France", "ile de france", 1),
    ],
)
def test_short_words_numbers_and_accents(accepted: str, text: str, points: float) -> None:
    assert mark({"kind": "short_text", "answers": [accepted]}, text).points == points


def test_strict_spelling_wants_every_letter() -> None:
    strict = PHOTO | {"spelling": "strict"}
    assert mark(strict, "Photosynthesis").points == 2
    near = mark(strict, "photosinthesis")
    assert (near.points, near.needs_review) == (0, True)


@pytest.mark.parametrize("text", ["not photosynthesis", "photosynthesis or respiration"])
def test_negation_and_hedging_earn_nothing(text: str) -> None:
    m = mark(PHOTO, text)
    assert (m.points, m.needs_review) == (0, True)


def test_a_near_miss_is_wrong_and_reviewed() -> None:
    m = mark(PHOTO, "photsintesus")
    assert (m.points, m.needs_review) == (0, True)


def test_keywords_earn_their_share() -> None:
    q = {
        "kind": "short_text",
        "answers": ["x"],
        "keywords": ["light", "water", "carbon dioxide", "oxygen"],
        "points": 4,
    }
    assert mark(q, "light, water, carbon dioxide give oxygen").points == 4
    assert mark(q, "the sun").points == 0
    half = mark(q, "Plants use light and watter to make sugar")
    assert (half.points, half.match, half.feedback) == (2, "partial", "Partly right: you have 2 of the 4 key points.")
    assert half.needs_review, "a teacher wants to see what words alone earned half the points"
    assert half.review_reason == "Marked by its key words alone; not found: “carbon dioxide”, “oxygen”."


SPOON = {
    "kind": "short_text",
    "answers": ["metal conducts heat away from the hand faster than wood"],
    "keywords": ["conductor", "heat"],
}


@pytest.mark.parametrize(
    ("question", "text", "reviewed"),
    [
        (SPOON, "warmth leaves your fingers quickly", True),
        (SPOON, "the spoon is cold", True),
        (SPOON, "magic", False),
        (SPOON, "very cold", False),
        (SPOON, "I don't know", False),
        (SPOON, "keine Ahnung", False),
        (PHOTO, "the leaves are breathing", False),
        (PHOTO | {"keywords": ["light"]}, "the leaves are breathing", True),
        (PHOTO | {"answers": ["carbon dioxide"]}, "the gas in sparkling water", True),
    ],
)
def test_words_of_ones_own_where_phrases_are_expected_are_wrong_and_reviewed(
    question: dict[str, Any], text: str, reviewed: bool
) -> None:
    m = mark(question, text)
    assert (m.points, m.match, m.needs_review) == (0, "wrong", reviewed)


def test_every_uncertain_mark_is_reviewed_whatever_makes_it_so() -> None:
    # All key words in a fair reading: nothing is wrong with it but that it is not certain.
    m = mark(SPOON, "it is a conductor of heat", 0.62)
    assert m.confidence < REVIEW_BELOW
    assert m.review_reason is not None
    assert m.review_reason.startswith("The mark is not certain (0.68); the answer was taken as “it is a conductor")


def test_a_lookalike_in_a_word_is_reviewed() -> None:
    m = mark(PHOTO, "ph0tosynthe5is", 0.8)
    assert (m.points, m.needs_review) == (2, True)
