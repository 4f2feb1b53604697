"""Finds, on the pages of a reading, what a pupil answered to each question of a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shared.contracts import AnswerKey, GivenAnswer, Page, Question

from .kinds import kind_of, never
from .locating.block import Printed, answer_in_block
from .locating.fragments import Fragment, Piece, answer_from, reading_order
from .locating.starts import Heads, Start, find_starts

__all__ = ["Located", "locate"]

# A question's number within a line: after a space, with a mark behind it.
_INNER = re.compile(r"(?<=\s)(\d{1,3}[a-z]?)\s?[.):](?=\s|[^\W\d])")


@dataclass(frozen=True, slots=True)
class Located:
    """One question on the pages.

    ``found``: its number or its prompt was found. ``answer`` is None where it was not, and has an
    empty text where the question was found but nothing was written.
    """

    question_id: str
    found: bool
    answer: GivenAnswer | None


def locate(key: AnswerKey, pages: Iterable[Page], check: Callable[[], None] = never) -> tuple[Located, ...]:
    """One Located for each question, in the order of the key. Never raises for any reading.

    Work is bounded: at most ``MAX_LINES`` lines of ``MAX_LINE`` characters are looked at. That can still be
    half a minute for prompts of 4000 characters, so ``check`` is called every few milliseconds of it and may raise.
    """
    pages = list(pages)
    heads = Heads(key)
    fragments = _split_runs(key, heads, reading_order(pages, heads.numbered, check))
    check()
    starts = find_starts(key, fragments, check)
    confidence = {p.number: p.confidence for p in pages}
    begun = sorted((s.index, i) for i, s in enumerate(starts) if s is not None)
    ends = {i: (begun[n + 1][0] if n + 1 < len(begun) else len(fragments)) for n, (_, i) in enumerate(begun)}
    out = []
    for i, question in enumerate(key.questions):
        start = starts[i]
        if start is None:
            out.append(Located(question.id, False, None))
            continue
        answer = _answer(question, start, fragments[start.index : ends[i]], confidence, check)
        out.append(Located(question.id, True, answer))
    return tuple(out)


def _answer(
    question: Question,
    start: Start,
    block: Sequence[Fragment],
    page_confidence: dict[int, float],
    check: Callable[[], None],
) -> GivenAnswer:
    kind = kind_of(question)
    pieces = [Piece(f, start.offset if n == 0 else 0, len(f.text)) for n, f in enumerate(block)]
    printed = Printed(question.prompt, kind.printed(question))
    text, used, marked = answer_in_block(pieces, printed, one_line=kind.one_line, check=check)
    if not used:
        first = block[0]
        return GivenAnswer(
            question_id=question.id, text="", confidence=page_confidence.get(first.page, first.confidence),
            page=first.page, box=first.box,
        )  # fmt: skip
    if marked:
        text = ", ".join(kind.marked(question, line) for line in marked)
    return answer_from(question.id, text, used)


def _split_runs(key: AnswerKey, heads: Heads, fragments: Sequence[Fragment]) -> list[Fragment]:
    """Boxes that hold several answers in a row ("1. B 2. C 3. A") taken apart at the numbers."""
    order = {q.id.casefold(): i for i, q in enumerate(key.questions)}
    out: list[Fragment] = []
    for fragment in fragments:
        first = next((q for q, strength, _ in heads.read(fragment.text) if strength >= 0.9), None)
        cuts = [0]
        at = first
        if first is not None:
            for m in _INNER.finditer(fragment.text):
                if at is not None and order.get(m[1].casefold()) == at + 1:
                    cuts.append(m.start(1))
                    at += 1
        out += [fragment] if len(cuts) == 1 else _parts(fragment, cuts)
    return out


def _parts(fragment: Fragment, cuts: list[int]) -> list[Fragment]:
    x0, y0, x1, y1 = fragment.box
    per_char = (x1 - x0) / max(1, len(fragment.text))
    parts = []
    for n, (a, b) in enumerate(zip(cuts, [*cuts[1:], len(fragment.text)], strict=True)):
        box = (x0 + per_char * a, y0, x0 + per_char * b, y1)
        # Words are left out: their places in the line are not those in the part.
        parts.append(
            Fragment(
                fragment.page, fragment.text[a:b].rstrip(), fragment.confidence, box, (), fragment.first and n == 0
            )
        )
    return parts
