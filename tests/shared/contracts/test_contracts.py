"""Contracts refuse what no handler could work with, and name the field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.contracts import JOB_TYPES, AnswerKey, JobType, Policy, Registry, UnknownJobType


class Nothing(BaseModel):
    pass


def key(*questions: dict[str, Any]) -> AnswerKey:
    return AnswerKey.model_validate({"questions": questions})


OPTIONS = {"A": "newton", "B": "joule"}


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ({"id": "1", "kind": "single_choice", "options": OPTIONS, "answer": "C"}, "not one of the options"),
        ({"id": "1", "kind": "single_choice", "options": {"A": "x"}, "answer": "A"}, "options"),
        ({"id": "1", "kind": "multiple_choice", "options": OPTIONS, "answers": ["A", "A"]}, "must not repeat"),
        ({"id": "1", "kind": "multiple_choice", "options": OPTIONS, "answers": []}, "answers"),
        ({"id": "1", "kind": "true_false"}, "answer"),
        ({"id": "1", "kind": "numeric", "answer": "nan"}, "answer"),
        ({"id": "1", "kind": "numeric", "answer": 1, "tolerance": {"absolute": -1}}, "tolerance"),
        ({"id": "1", "kind": "short_text", "answers": []}, "answers"),
        ({"id": "1", "kind": "list", "items": [["a"]], "required": 2}, "only 1 items"),
        ({"id": "1", "kind": "essay", "answer": "x"}, "kind"),
        ({"id": "1", "kind": "true_false", "answer": True, "points": 0}, "points"),
        ({"id": "a b", "kind": "true_false", "answer": True}, "id"),
    ],
)
def test_a_question_that_cannot_be_graded_is_refused(question: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        key(question)


def test_question_ids_are_unique_whatever_their_case() -> None:
    one = {"kind": "true_false", "answer": True}
    with pytest.raises(ValidationError, match="used twice"):
        key({"id": "1a", **one}, {"id": "1A", **one})


def test_a_key_adds_its_points_up() -> None:
    one = {"kind": "true_false", "answer": True}
    assert key({"id": "1", "points": 2, **one}, {"id": "2", "points": 0.5, **one}).max_points == 2.5


def test_a_name_or_alias_has_one_owner() -> None:
    registry = Registry()
    registry.declare(JobType("a.b", "q", Nothing, Nothing, title="A", aliases=("a.old",)))
    assert registry.get("a.old").name == "a.b"
    with pytest.raises(ValueError, match="declared twice"):
        registry.declare(JobType("a.old", "q", Nothing, Nothing, title="B"))
    with pytest.raises(UnknownJobType, match=r"a\.c"):
        registry.get("a.c")


def test_backoff_doubles_to_its_cap_within_the_jitter() -> None:
    policy = Policy(backoff_base=120, backoff_max=480, jitter=0.2)
    assert [policy.backoff(n, 0) for n in (1, 2, 3, 4)] == [120, 240, 480, 480]
    assert policy.backoff(1, -1) == pytest.approx(96)
    assert policy.backoff(1, 1) == pytest.approx(144)


@pytest.mark.parametrize("limit", [0, -1, 3601])
def test_a_time_limit_is_at_most_an_hour(limit: float) -> None:
    with pytest.raises(ValueError, match="time_limit"):
        Policy(time_limit=limit)


def test_every_job_name_is_permanent() -> None:
    # A changed name strands the jobs in the queue: add an alias instead, then change this list.
    assert [t.name for t in JOB_TYPES.all()] == ["grading.quiz", "notify.email", "notify.webhook", "ocr.document"]
