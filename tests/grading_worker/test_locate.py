"""Answers are found where pupils write them, in readings as noisy as real ones."""

from __future__ import annotations

import time

import pytest

from services.grading_worker.locate import Located, locate
from shared.contracts import AnswerKey, Page
from tests.grading_worker.sheets import key_of, line, page, sheet

SHORT = {"kind": "short_text", "answers": ["x"]}
PLANTS = SHORT | {"prompt": "What is the process by which green plants make their food?"}
CAPITAL = SHORT | {"prompt": "Which city is the capital of France?"}
SPEED = {
    "kind": "numeric",
    "answer": 12.5,
    "unit": "m/s",
    "prompt": "A cyclist rides 150 m in 12 s. What is her speed?",
}
PLANET = {
    "kind": "single_choice",
    "prompt": "Which planet is red?",
    "options": {"A": "Venus", "B": "Mars", "C": "Jupiter"},
    "answer": "B",
}


def texts(key: AnswerKey, *pages: Page) -> list[str | None]:
    return [f.answer.text if f.answer is not None else None for f in locate(key, pages)]


def one(key: AnswerKey, *pages: Page) -> Located:
    return locate(key, pages)[0]


@pytest.mark.parametrize(
    "label",
    [
        "Answer: ",
        "Answer:",
        "Ans: ",
        "Answar: ",
        "ANSWER ",
        "Antwort: ",
        "Réponse : ",
        "Reponse: ",
        "Respuesta: ",
        "Answer ____ ",
        "Answer.... ",
        "An5wer: ",
        "Answer = ",
        "Answer",
    ],
)
def test_the_answer_follows_its_label(label: str) -> None:
    key = key_of(PLANTS, CAPITAL)
    read = sheet(f"1. {PLANTS['prompt']}", f"{label}photosynthesis", f"2. {CAPITAL['prompt']}", f"{label}Paris ______")
    assert texts(key, read) == ["photosynthesis", "Paris"]


@pytest.mark.parametrize(
    "head", ["1.", "1)", "Q1", "Q1.", "Question 1:", "(1)", "1 ", "l.", "Frage 1:", "Aufgabe 1", "No. 1"]
)
def test_numbers_are_written_in_many_ways(head: str) -> None:
    assert texts(key_of(SHORT, SHORT), sheet(f"{head} Paris", "2. Rome")) == ["Paris", "Rome"]


def test_ids_with_letters() -> None:
    key = key_of(SHORT | {"id": "2a"}, SHORT | {"id": "2b"}, SHORT | {"id": "3"})
    assert texts(key, sheet("2a) Paris", "2 b) Rome", "3. Oslo")) == ["Paris", "Rome", "Oslo"]
    assert texts(key, sheet("2.", "a) Paris", "b) Rome", "3. Oslo")) == ["Paris", "Rome", "Oslo"]


def test_without_a_label_the_answer_is_what_the_print_leaves() -> None:
    key = key_of(PLANTS, PLANET, CAPITAL)
    read = sheet(
        "1. What is the process by which green plants",
        "make their food? (2 points)",
        "photosynthesis",
        "2. Which planet is red?",
        "A) Venus",
        "B) Mars",
        "C) Jupiter",
        "B",
        "3. Which city is the capital of France? Paris",
    )
    assert texts(key, read) == ["photosynthesis", "B", "Paris"]


def test_glued_and_misread_print_is_taken_away() -> None:
    key = key_of(PLANTS, CAPITAL)
    read = sheet(
        "1.Whatis the procoss by whichgreen plantsmake their food?",
        "photosynthesis",
        "2.Which cityis the capitol of Franoe? Paris",
    )
    assert texts(key, read) == ["photosynthesis", "Paris"]


def test_an_answer_that_repeats_a_word_of_the_prompt_survives() -> None:
    key = key_of(SHORT | {"prompt": "Is ice lighter or heavier than water?"}, CAPITAL)
    assert texts(
        key, sheet("1. Is ice lighter or heavier than water?", "lighter", "2. Which city is the capital of France?")
    ) == [
        "lighter",
        "",
    ]


def test_numbers_inside_answers_do_not_mislead() -> None:
    key = key_of(
        {"kind": "list", "items": [["red"], ["green"]], "prompt": "Name the colours of the signal."}, SPEED, CAPITAL
    )
    read = sheet(
        "1. Name the colours of the signal.",
        "1. red",
        "2. green",
        "3. amber",
        "2. A cyclist rides 150 m in 12 s. What is her speed?",
        "Answer: 12.5 m/s",
        "3. Which city is the capital of France?",
        "Answer: Paris",
    )
    assert texts(key, read) == ["1. red\n2. green\n3. amber", "12.5 m/s", "Paris"]


def test_a_lost_number_is_made_up_for_by_the_prompt() -> None:
    key = key_of(PLANTS, CAPITAL, PLANET)
    read = sheet(
        f"1. {PLANTS['prompt']}",
        "Answer: light",
        "Which city is the capital of France?",
        "Answer: Paris",
        "3. Which planet is red?",
        "Answer: B",
    )
    assert texts(key, read) == ["light", "Paris", "B"]


def test_not_found_and_blank_are_told_apart() -> None:
    key = key_of(PLANTS, CAPITAL, PLANET)
    blank, missing, last = locate(
        key, [sheet(f"1. {PLANTS['prompt']}", "Answer: ________", "3. Which planet is red?", "Answer: B")]
    )
    assert blank.found
    assert blank.answer is not None
    assert blank.answer.text == ""
    assert not missing.found
    assert missing.answer is None
    assert last.answer is not None
    assert last.answer.text == "B"


@pytest.mark.parametrize("shift", [-22, -8, 0, 8, 22])
def test_handwriting_beside_the_label_slightly_off_its_line(shift: float) -> None:
    key = key_of(CAPITAL, PLANET)
    read = page(
        line("1.", 100, 100),
        line("Which city is the capital of France?", 150, 100),
        line("Answer:", 150, 200, height=36),
        line("Paris", 290, 200 + shift, height=44),
        line("2. Which planet is red?", 100, 330),
        line("Answer:", 150, 420),
        line("B", 290, 415),
    )
    assert texts(key, read) == ["Paris", "B"]


def test_an_answer_below_its_label_and_one_over_two_lines() -> None:
    key = key_of(PLANTS, CAPITAL)
    read = sheet(
        f"1. {PLANTS['prompt']}",
        "Answer:",
        "they use light",
        "to make sugar",
        f"2. {CAPITAL['prompt']}",
        "Answer: Paris",
    )
    assert texts(key, read) == ["they use light\nto make sugar", "Paris"]


def test_a_block_goes_on_over_the_page_break() -> None:
    key = key_of(PLANTS, CAPITAL)
    first = sheet("Biology quiz for year 8", f"1. {PLANTS['prompt']}", "Page 1 of 2", number=1)
    second = sheet(
        "Biology quiz for year 8", "Answer: photosynthesis", f"2. {CAPITAL['prompt']}", "Answer: Paris", number=2
    )
    found = locate(key, [second, first])
    assert [f.answer.text for f in found if f.answer] == ["photosynthesis", "Paris"]
    assert found[0].answer is not None
    assert found[0].answer.page == 2


def test_two_columns_are_read_one_after_the_other() -> None:
    key = key_of(SHORT, SHORT, SHORT, SHORT)
    read = page(
        line("Geography", 600, 20),
        line("1. Paris", 100, 100),
        line("2. Rome", 100, 300),
        line("3. Oslo", 900, 100),
        line("4. Bern", 900, 300),
        line("the city", 100, 150),
        line("of light", 900, 150),
    )
    assert texts(key, read) == ["Paris\nthe city", "Rome", "Oslo\nof light", "Bern"]


def test_an_answer_box_to_the_right_is_no_column() -> None:
    key = key_of(CAPITAL, PLANTS)
    read = page(
        line("1. Which city is the capital of France?", 100, 100),
        line("Paris", 1000, 102),
        line("2. What is the process by which", 100, 200),
        line("photosynthesis", 1000, 205),
        line("green plants make their food?", 130, 240),
    )
    assert texts(key, read) == ["Paris", "photosynthesis"]


def test_several_answers_in_one_box() -> None:
    assert texts(key_of(PLANET, PLANET, PLANET), sheet("1. B 2. C 3. A")) == ["B", "C", "A"]


def test_a_ticked_option_is_the_answer() -> None:
    key = key_of(PLANET, CAPITAL)
    assert texts(
        key, sheet("1. Which planet is red?", "[ ] A) Venus", "[x] B) Mars", "[ ] C) Jupiter", "2. Paris")
    ) == ["B", "Paris"]


def test_a_gap_in_the_prompt() -> None:
    key = key_of(
        SHORT | {"prompt": "The ______ is the powerhouse of the cell."},
        SHORT | {"prompt": "The capital of France is ____."},
    )
    read = sheet("1. The mitochondrion is the powerhouse of the cell.", "2. The capital of France is Paris")
    assert texts(key, read) == ["mitochondrion", "Paris"]


def test_a_negative_number_keeps_its_sign() -> None:
    key = key_of({"kind": "numeric", "answer": -5, "prompt": "What is three minus eight?"})
    assert texts(key, sheet("1. What is three minus eight?", "Answer: -5")) == ["-5"]
    assert texts(key, sheet("1. What is three minus eight? -5")) == ["-5"]


def test_confidence_and_box_are_those_of_what_was_used() -> None:
    key = key_of(CAPITAL)
    read = page(
        line("1. Which city is the capital of France?", 100, 100, conf=0.99),
        line("Answer:", 100, 200, conf=0.99),
        line("Paris", 300, 195, conf=0.7),
    )
    answer = one(key, read).answer
    assert answer is not None
    assert answer.confidence == pytest.approx(0.7)
    assert answer.page == 1
    assert answer.box == (300, 195, 370, 225)


def test_a_part_of_a_line_has_its_part_of_the_box() -> None:
    answer = one(
        key_of(CAPITAL),
        page(line("Answer: Paris", 100, 200), line("1. Which city is the capital of France?", 100, 100)),
    ).answer
    assert answer is not None
    assert answer.box is not None
    assert answer.box[0] > 180


def test_a_huge_reading_takes_bounded_time() -> None:
    key = AnswerKey.model_validate(
        {
            "questions": [
                {**SHORT, "id": str(i), "prompt": f"Question about topic {i} " + "word " * 300} for i in range(1, 301)
            ]
        }
    )
    pages = [
        sheet(*(f"{(n * i) % 300}. Question about topic {i} " + "word " * 100 for i in range(60)), number=n)
        for n in range(1, 101)
    ]
    began = time.monotonic()
    locate(key, pages)
    assert time.monotonic() - began < 30
