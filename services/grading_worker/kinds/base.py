"""The one interface of a kind of question, and what holds for all kinds.

A kind judges the text of an answer. How sure the reading was, blanks, missing questions and
overlong texts are dealt with here, once, and so is which marks a person looks at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from shared.contracts import AnswerKey, GivenAnswer, MatchKind, Question

__all__ = [
    "POOR_READING",
    "REVIEW_BELOW",
    "Answer",
    "Kind",
    "Mark",
    "Verdict",
    "never",
    "number_text",
    "points_text",
    "quoted",
]

Q = TypeVar("Q", bound=Question)

# A reading less sure than this is never counted without a person looking at it.
POOR_READING = 0.6
# Every mark less sure than this is looked at by a person, and says why.
REVIEW_BELOW = 0.7
# Characters of an answer that are judged; what comes after is left to a person.
MAX_JUDGED = 4000
_QUOTED = 60


def never() -> None:
    """The ``check`` of a caller that is never interrupted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as a kind sees it: stripped, bounded, not empty. ``was_read``: it comes out of an image.

    ``check`` raises when the job is to stop: what compares with many forms takes them through ``against``.
    """

    text: str
    confidence: float
    was_read: bool
    check: Callable[[], None] = never

    def against(self, forms: Iterable[str]) -> Iterator[str]:
        """``forms``, one after the other, until the job is to stop."""
        for form in forms:
            self.check()
            yield form


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a kind says of an answer.

    ``share`` of the points in [0, 1]. ``confidence`` that a careful teacher would give this share to
    this text, taking the reading as right. ``doubt``: a sentence that says why a person should look, in any case.
    ``altered``: the text had to be read otherwise than it stands (look-alikes) to be judged so.
    """

    share: float
    match: MatchKind
    feedback: str
    confidence: float
    doubt: str | None = None
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A finished mark. ``points`` in [0, max]; ``confidence`` that a careful teacher would give them.

    ``review_reason``: sentences for the teacher; there is one wherever ``confidence`` is below REVIEW_BELOW.
    """

    points: float
    match: MatchKind
    feedback: str
    expected: str
    confidence: float
    review_reason: str | None = None

    @property
    def needs_review(self) -> bool:
        return self.review_reason is not None


class Kind(ABC, Generic[Q]):
    """One kind of question. A subclass judges; instances hold no state and are safe from any thread."""

    name: ClassVar[str]
    # Whether an answer is one line at most, so that what stands further below is not part of it.
    one_line: ClassVar[bool] = False

    @abstractmethod
    def expected(self, question: Q, key: AnswerKey) -> str:
        """The right answer in words for teachers."""

    @abstractmethod
    def judge(self, question: Q, answer: Answer, key: AnswerKey) -> Verdict:
        """The verdict on a text of 1 to MAX_JUDGED characters. Must not raise for any text."""

    def printed(self, question: Q) -> tuple[str, ...]:
        """Lines that a sheet prints with the question besides its prompt, as options."""
        return ()

    def marked(self, question: Q, printed: str) -> str:
        """The answer that a tick beside the printed line ``printed`` stands for."""
        return printed

    def grade(self, question: Q, answer: GivenAnswer | None, key: AnswerKey, check: Callable[[], None] = never) -> Mark:
        """The mark: the verdict weighed with how sure the reading was. ``None``: the question was not found.

        Raises nothing but what ``check`` raises, which is called often enough to stop within a second.
        """
        expected = self.expected(question, key)
        if answer is None:
            return Mark(
                0.0, "unreadable", "Your answer could not be found on the page. Your teacher will look at it.",
                expected, 0.2, "The question was not found on the pages.",
            )  # fmt: skip
        text = answer.text.strip()
        if not any(c.isalnum() or c in _MEANINGFUL for c in text):
            poor = answer.confidence < POOR_READING
            reason = (
                f"No answer was read, but the page was hard to read (reading confidence {answer.confidence:.2f})."
                if poor
                else None
            )
            return Mark(
                0.0, "blank", "No answer was given.", expected, 0.5 if poor else 0.5 + 0.45 * answer.confidence, reason
            )
        verdict = self.judge(question, Answer(text[:MAX_JUDGED], answer.confidence, answer.confidence < 1, check), key)
        return _weigh(question.points, verdict, answer, text, expected)


# Signs that alone can be an answer: ticks and comparison signs.
_MEANINGFUL = frozenset("✓✔☑✗✘☒×+<>=≤≥≠→←↑↓√∞%€$£?!π½¼¾")


def _weigh(points: float, verdict: Verdict, answer: GivenAnswer, text: str, expected: str) -> Mark:
    confidence = verdict.confidence
    # A wrong answer may be a right one misread; a right one is hardly ever a wrong one misread.
    if answer.confidence < 1:
        confidence *= 0.5 + 0.5 * answer.confidence if verdict.share == 0 else 0.75 + 0.25 * answer.confidence
    reasons = [verdict.doubt] if verdict.doubt else []
    read_as = f"“{_quote(text)}” (reading confidence {answer.confidence:.2f})"
    if answer.confidence < POOR_READING:
        reasons.insert(0, f"Hard to read; taken as {read_as}.")
        confidence = min(confidence, 0.6)
    if verdict.altered:
        reasons.insert(0, f"Marked as if look-alike characters had been mixed up in {read_as}.")
        confidence = min(confidence, 0.6)
    confidence = round(min(1.0, max(0.0, confidence)), 3)
    if not reasons and confidence < REVIEW_BELOW:
        reasons.append(f"The mark is not certain ({confidence:.2f}); the answer was taken as {read_as}.")
    if len(text) > MAX_JUDGED:
        reasons.append(f"Only the first {MAX_JUDGED} characters were marked.")
    share = min(1.0, max(0.0, verdict.share))
    return Mark(
        round(points * share, 4),
        verdict.match,
        verdict.feedback,
        expected,
        confidence,
        " ".join(reasons) or None,
    )


def _quote(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _QUOTED else one_line[: _QUOTED - 1] + "…"


def quoted(texts: Sequence[str], most: int = 5) -> str:
    """“a”, “b” and 3 more: texts of the key in a sentence, each cut to one short line."""
    shown = ", ".join(f"“{_quote(t)}”" for t in texts[:most])
    return f"{shown} and {len(texts) - most} more" if len(texts) > most else shown


def number_text(value: float) -> str:
    """A number for people: at most ten significant digits, no trailing zeros."""
    return f"{value:.10g}"


def points_text(value: float, of: float) -> str:
    """ "2 of 3" for feedback."""
    return f"{number_text(value)} of {number_text(of)}"
