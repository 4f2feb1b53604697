"""Marking against the most hostile key stops about as soon as it is told to."""

from __future__ import annotations

import random
import time

import pytest

from services.grading_worker.grade import grade_quiz
from services.grading_worker.locate import locate
from shared.contracts import AnswerKey, GivenAnswer, Page
from shared.jobs import JobTimeout
from tests.grading_worker.sheets import line, page

WORDS = ("alpha", "beta", "gamma", "delta", "heat", "conductor", "metal", "light", "water", "plant")


class TimeLimit:
    """A job's ``check``, which raises once ``after`` seconds have passed."""

    def __init__(self, after: float) -> None:
        self.due = time.monotonic() + after

    def __call__(self) -> None:
        if time.monotonic() >= self.due:
            raise JobTimeout

    @property
    def overrun(self) -> float:
        return time.monotonic() - self.due


def prose(length: int) -> str:
    words = (f"{random.choice(WORDS)}{random.randint(0, 9)}" for _ in range(length // 6 + 1))
    return " ".join(words)[:length].strip()


@pytest.fixture(scope="module")
def answers() -> tuple[str, ...]:
    random.seed(1)
    return tuple(prose(2000) for _ in range(50))


@pytest.fixture(scope="module")
def hostile(answers: tuple[str, ...]) -> AnswerKey:
    """300 questions of 50 accepted answers of 2000 characters."""
    texts = {"kind": "short_text", "answers": answers, "keywords": answers, "prompt": prose(4000)}
    return AnswerKey.model_validate({"questions": [{"id": str(i), **texts} for i in range(1, 301)]})


@pytest.fixture(scope="module")
def full_pages() -> list[Page]:
    """4000 lines of 1000 characters, most of them with a question's number."""
    random.seed(2)
    lines = [line(f"{n % 300 + 1}. {prose(990)}", 100, 40 * (n % 40)) for n in range(4000)]
    return [page(*lines[n * 40 : n * 40 + 40], number=n + 1) for n in range(100)]


@pytest.mark.parametrize("after", [0.05, 0.5, 1.5])
def test_finding_the_answers_stops_within_a_second(hostile: AnswerKey, full_pages: list[Page], after: float) -> None:
    limit = TimeLimit(after)
    with pytest.raises(JobTimeout):
        locate(hostile, full_pages, limit)
    assert limit.overrun < 1


def test_a_page_of_one_endless_row_stops_within_a_second(hostile: AnswerKey) -> None:
    row = page(*(line(f"{n}. x", 100 + 60 * n, 100, width=50) for n in range(4000)))
    limit = TimeLimit(0.3)
    with pytest.raises(JobTimeout):
        locate(hostile, [row], limit)
    assert limit.overrun < 1


def test_marking_long_answers_stops_within_a_second(hostile: AnswerKey) -> None:
    random.seed(3)
    given = {q.id: GivenAnswer(question_id=q.id, text=prose(4000), confidence=0.9) for q in hostile.questions}
    limit = TimeLimit(0.5)
    with pytest.raises(JobTimeout):
        grade_quiz(hostile, given, grading_id="grd_x", standard_id="std_x", standard_version=1, check=limit)
    assert limit.overrun < 1


@pytest.mark.parametrize("joint", ["\n", " and "])
def test_marking_one_list_of_very_many_forms_stops_within_a_second(joint: str) -> None:
    random.seed(4)
    items = [[prose(40) for _ in range(500)] for _ in range(50)]
    key = AnswerKey.model_validate({"questions": [{"id": "1", "kind": "list", "items": items}]})
    given = {"1": GivenAnswer(question_id="1", text=joint.join(prose(40) for _ in range(80)), confidence=0.9)}
    limit = TimeLimit(0.5)
    with pytest.raises(JobTimeout):
        grade_quiz(key, given, grading_id="grd_x", standard_id="std_x", standard_version=1, check=limit)
    assert limit.overrun < 1
