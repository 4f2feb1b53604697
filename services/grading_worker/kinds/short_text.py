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

from .base import Answer, Kind, Verdict, quoted

_MATCHES: dict[MatchQuality, tuple[MatchKind, float]] = {
    MatchQuality.EXACT: ("exact", 0.99),
    MatchQuality.EQUIVALENT: ("equivalent", 0.97),
    MatchQuality.SPELLING: ("close", 0.87),
    MatchQuality.CONFUSABLE: ("close", 0.6),
}
# Words around an accepted answer up to which a sentence is taken to say just that.
_FRAME = 8
# Words from which an answer may say the expected thing in words of its own.
_OF_SUBSTANCE = 3
_NOTHING_KNOWN = frozenset(
    tokens(phrase)
    for phrase in (
        *("I don't know", "I do not know", "I have no idea", "no idea", "dunno", "not sure", "I am not sure"),
        *("keine Ahnung", "weiß nicht", "weiß ich nicht", "ich weiß es nicht", "ich weiß nicht"),
        *("je ne sais pas", "aucune idée", "no lo sé", "no sé", "ni idea"),
    )
)


class ShortTextKind(Kind[ShortText]):
    name = "short_text"

    def expected(self, question: ShortText, key: AnswerKey) -> str:
        return " / ".join(question.answers)

    def judge(self, question: ShortText, answer: Answer, key: AnswerKey) -> Verdict:
        text = " ".join(answer.text.split())
        lenient = question.spelling == "lenient"
        found = best_match(text, answer.against(question.answers), lenient=lenient, was_read=answer.was_read)
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
                "This is almost an accepted answer.",
            )  # fmt: skip
        if _in_own_words(question, words):
            return Verdict(
                0, "wrong", "This does not match the expected answer. Your teacher will look at it.", 0.6,
                "An answer in the pupil's own words that matches none of the accepted ones: it may mean the same.",
            )  # fmt: skip
        return Verdict(0, "wrong", "This is not the expected answer.", 0.88)


def _in_own_words(question: ShortText, words: tuple[str, ...]) -> bool:
    """Whether an answer that matches nothing may be right all the same: a phrase, where phrases are expected."""
    if len(words) < _OF_SUBSTANCE or words in _NOTHING_KNOWN:
        return False
    return bool(question.keywords) or any(len(tokens(a)) > 1 for a in question.answers)


def _accept(found: TextMatch) -> Verdict:
    match, sure = _MATCHES[found.quality]
    if found.quality is MatchQuality.SPELLING:
        return Verdict(1, match, f"Right. Mind the spelling: {found.accepted}.", sure)
    return Verdict(1, match, "Right.", sure, altered=found.quality is MatchQuality.CONFUSABLE)


def _contained(question: ShortText, words: tuple[str, ...], answer: Answer, lenient: bool) -> Verdict | None:
    """An accepted answer within a longer one ("It is photosynthesis")."""
    for form in answer.against(question.answers):
        # Very short forms turn up inside other answers by chance.
        if len("".join(tokens(form))) < 2:
            continue
        place = find_phrase(words, form, lenient=lenient, was_read=answer.was_read)
        if place is None:
            continue
        start, end, quality = place
        if is_negated(words, start):
            return Verdict(
                0, "wrong", "The right words are here, but your answer says that it is not so.", 0.6,
                "The expected words are there, but negated.",
            )  # fmt: skip
        if has_hedge(words[:start] + words[end:]):
            return Verdict(
                0, "wrong", "Decide on one answer: several are given here.", 0.55,
                "Several answers are offered, an accepted one among them.",
            )  # fmt: skip
        extra = len(words) - (end - start)
        doubt = "The answer says more than the accepted one: see whether the rest is right." if extra > _FRAME else None
        altered = quality is MatchQuality.CONFUSABLE
        return Verdict(1, "close" if altered else "equivalent", "Right.", 0.85 if not doubt else 0.7, doubt, altered)
    return None


def _keywords(question: ShortText, words: tuple[str, ...], answer: Answer, lenient: bool) -> Verdict | None:
    if not question.keywords:
        return None
    hits, altered, negated = 0, False, False
    missed: list[str] = []
    for keyword in answer.against(question.keywords):
        place = find_phrase(words, keyword, lenient=lenient, was_read=answer.was_read)
        if place is None:
            missed.append(keyword)
            continue
        hits += 1
        altered |= place[2] is MatchQuality.CONFUSABLE
        negated |= is_negated(words, place[0])
    if not hits:
        return None
    total = len(question.keywords)
    doubt = "A key point seems to be negated." if negated else None
    if hits == total:
        return Verdict(1, "equivalent", "Right: all the key points are there.", 0.75, doubt, altered)
    # Part of the points for words found is a guess at what a sentence means: always for a person to see.
    counted = f"Marked by its key words alone; not found: {quoted(missed)}."
    feedback = f"Partly right: you have {hits} of the {total} key points."
    return Verdict(hits / total, "partial", feedback, 0.65, f"{doubt} {counted}" if doubt else counted, altered)


KIND = ShortTextKind()
