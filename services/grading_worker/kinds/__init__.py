"""How each kind of question is graded: one module a kind, found by discovery.

A module of this package that holds a ``KIND`` (a ``Kind`` instance) is a kind of question. Nothing
else has to be told about it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from shared.contracts import AnswerKey, GivenAnswer, Question

from .base import REVIEW_BELOW, Kind, Mark, Verdict, never

__all__ = ["REVIEW_BELOW", "Kind", "Mark", "UnknownKind", "Verdict", "grade", "kind_of", "kinds", "never"]


class UnknownKind(LookupError):
    """No module of this package grades that kind of question."""


@lru_cache(maxsize=1)
def kinds() -> dict[str, Kind[Any]]:
    """Every kind by its name. Raises ValueError when two modules claim one name."""
    found: dict[str, Kind[Any]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        kind = getattr(module, "KIND", None)
        if not isinstance(kind, Kind):
            continue
        if kind.name in found:
            raise ValueError(f"the kind {kind.name!r} is declared twice")
        found[kind.name] = kind
    return found


def kind_of(question: Question) -> Kind[Any]:
    """Raises UnknownKind."""
    try:
        return kinds()[question.kind]
    except KeyError:
        raise UnknownKind(question.kind) from None


def grade(question: Question, answer: GivenAnswer | None, key: AnswerKey, check: Callable[[], None] = never) -> Mark:
    """The mark for one answer; ``None`` when the question was not found on the pages.

    Never raises for any answer text. Raises UnknownKind, and what ``check`` raises: it is called often
    enough that the most hostile key stops within a second.
    """
    return kind_of(question).grade(question, answer, key, check)
