"""A new kind is one file in ``kinds/``: nothing else has to be told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.grading_worker import kinds as package
from tests.grading_worker.sheets import given, key_of

MODULE = """
from services.grading_worker.kinds.base import Kind, Verdict

class Palindrome(Kind):
    name = "palindrome"
    def expected(self, question, key):
        return "any palindrome"
    def judge(self, question, answer, key):
        right = answer.text == answer.text[::-1]
        return Verdict(1.0 if right else 0.0, "exact" if right else "wrong", "Read it backwards.", 0.9)

KIND = Palindrome()
"""


@pytest.fixture
def extra_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    package.kinds.cache_clear()
    yield tmp_path
    package.kinds.cache_clear()
    for name in ("palindrome", "again"):
        sys.modules.pop(f"{package.__name__}.{name}", None)


def test_a_module_with_a_kind_is_enough(extra_folder: Path) -> None:
    (extra_folder / "palindrome.py").write_text(MODULE)
    question = cast(Any, SimpleNamespace(kind="palindrome", points=3.0))
    key = key_of({"kind": "true_false", "answer": True})
    assert package.grade(question, given("level"), key).points == 3.0
    assert package.grade(question, given("levels"), key).points == 0
    assert package.grade(question, given("level", 0.5), key).needs_review


def test_two_modules_of_one_name_are_refused(extra_folder: Path) -> None:
    (extra_folder / "again.py").write_text(MODULE.replace('"palindrome"', '"numeric"'))
    with pytest.raises(ValueError, match="declared twice"):
        package.kinds()


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(package.UnknownKind, match="riddle"):
        package.kind_of(cast(Any, SimpleNamespace(kind="riddle")))
