"""A word or a sentence."""

from __future__ import annotations

from services.grading_worker.wording import (
    MatchQuality,
    TextMatch,
    best_match,
    find_phrase,
    has_hedge,
    is_negated,
    tokens,
)
from shared.contracts import AnswerKey, MatchKind, ShortText

from .base import Answer, Kind, Verdict, points_text

_MATCHES: dict[MatchQuality, tuple[MatchKind, float]] = {
    MatchQuality.EXACT: ("exact", 0.99),
    MatchQuality.EQUIVALENT: ("equivalent", 0.97),
    MatchQuality.SPELLING: ("close", 0.87),
    MatchQuality.CONFUSABLE: ("close", 0.6),
}
# Words around an accepted answer up to which a sentence is taken to say just that.
_FRAME = 8


class ShortTextKind(Kind[ShortText]):
    name = "short_text"

    def expected(self, question: ShortText, key: AnswerKey) -> str:
        return " / ".join(question.answers)

    def judge(self, question: ShortText, answer: Answer, key: AnswerKey) -> Verdict:
        text = " ".join(answer.text.split())
        lenient = question.spelling == "lenient"
        found = best_match(text, question.answers, lenient=lenient, was_read=answer.was_read)
        if found.quality >= MatchQuality.CONFUSABLE:
            return _accept(found)
        words = tokens(text)
        contained = _contained(question, words, answer, lenient)
        if contained is not None:
            return contained
        by_keywords = _keywords(question, words, answer, lenient)
        if by_keywords is not None:
            return by_keywords
        if found.quality is MatchQuality.NEAR:
            return Verdict(
                0, "wrong", "Close, but not the expected answer: check the word and its spelling.", 0.55,
                "almost an accepted answer",
            )  # fmt: skip
        # A long free answer may say the same in other words.
        free = len(words) > 4 and max(len(tokens(a)) for a in question.answers) > 2
        return Verdict(
            0, "wrong", "This is not the expected answer.", 0.6 if free else 0.88,
            "a sentence that matches none of the accepted answers" if free else None,
        )  # fmt: skip


def _accept(found: TextMatch) -> Verdict:
    match, sure = _MATCHES[found.quality]
    if found.quality is MatchQuality.SPELLING:
        return Verdict(1, match, f"Right. Mind the spelling: {found.accepted}.", sure)
    return Verdict(1, match, "Right.", sure, altered=found.quality is MatchQuality.CONFUSABLE)


def _contained(question: ShortText, words: tuple[str, ...], answer: Answer, lenient: bool) -> Verdict | None:
    """An accepted answer within a longer one ("It is photosynthesis")."""
    for form in question.answers:
        # Very short forms turn up inside other answers by chance.
        if len("".join(tokens(form))) < 2:
            continue
        place = find_phrase(words, form, lenient=lenient, was_read=answer.was_read)
        if place is None:
            continue
        start, end, quality = place
        if is_negated(words, start):
            return Verdict(0, "wrong", "This says that it is not so.", 0.6, "the expected words are there, but negated")
        if has_hedge(words[:start] + words[end:]):
            return Verdict(0, "wrong", "Give one answer only.", 0.55, "several answers are offered")
        extra = len(words) - (end - start)
        doubt = "the answer says more than the accepted one" if extra > _FRAME else None
        altered = quality is MatchQuality.CONFUSABLE
        return Verdict(1, "close" if altered else "equivalent", "Right.", 0.85 if not doubt else 0.7, doubt, altered)
    return None


def _keywords(question: ShortText, words: tuple[str, ...], answer: Answer, lenient: bool) -> Verdict | None:
    if not question.keywords:
        return None
    hits, altered, negated = 0, False, False
    for keyword in question.keywords:
        place = find_phrase(words, keyword, lenient=lenient, was_read=answer.was_read)
        if place is None:
            continue
        hits += 1
        altered |= place[2] is MatchQuality.CONFUSABLE
        negated |= is_negated(words, place[0])
    if not hits:
        return None
    total = len(question.keywords)
    doubt = "a key point seems to be negated" if negated else None
    if hits == total:
        return Verdict(1, "equivalent", "Right: all the key points are there.", 0.75, doubt, altered)
    feedback = f"{points_text(hits, total)} key points are there."
    return Verdict(hits / total, "partial", feedback, 0.65, doubt, altered)


KIND = ShortTextKind()
