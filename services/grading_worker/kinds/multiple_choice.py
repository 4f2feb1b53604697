"""Several letters out of several options."""

from __future__ import annotations

from shared.contracts import AnswerKey, MatchKind, MultipleChoice

from ._options import SEVERAL, option_lines, read_choice
from .base import Answer, Kind, Verdict


class MultipleChoiceKind(Kind[MultipleChoice]):
    name = "multiple_choice"

    def expected(self, question: MultipleChoice, key: AnswerKey) -> str:
        return ", ".join(label for label in question.options if label in question.answers)

    def printed(self, question: MultipleChoice) -> tuple[str, ...]:
        return option_lines(question.options)

    def marked(self, question: MultipleChoice, printed: str) -> str:
        return printed.partition(")")[0]

    def judge(self, question: MultipleChoice, answer: Answer, key: AnswerKey) -> Verdict:
        chosen = read_choice(answer.text, question.options, was_read=answer.was_read)
        if not chosen.labels:
            return Verdict(
                0, "wrong", "This is none of the options: write the letters of those that are right.", 0.75,
                "The answer names none of the options.",
            )  # fmt: skip
        right = [label for label in chosen.labels if label in question.answers]
        wrong = [label for label in chosen.labels if label not in question.answers]
        missed = len(question.answers) - len(right)
        doubt = None if chosen.doubt == SEVERAL else chosen.doubt
        if not wrong and not missed:
            match: MatchKind = "close" if chosen.altered or chosen.slip else "equivalent" if chosen.by_text else "exact"
            return Verdict(
                1, match, "Right: these are all the correct options.", 0.99 * chosen.sure, doubt, chosen.altered
            )
        share = max(0.0, (len(right) - len(wrong)) / len(question.answers)) if question.scoring == "partial" else 0.0
        return Verdict(
            share, "partial" if share > 0 else "wrong", _feedback(question, right, wrong, missed), 0.93 * chosen.sure,
            doubt, chosen.altered,
        )  # fmt: skip


def _feedback(question: MultipleChoice, right: list[str], wrong: list[str], missed: int) -> str:
    """What is right and what is not, and, where it is not plain from that, why the points are what they are."""
    if not right:
        return f"{_are(wrong)} not right."
    parts = [f"{_are(right)} right"]
    if wrong:
        parts.append(f"{_are(wrong)} not")
    if missed:
        parts.append(f"{missed} more {'is' if missed == 1 else 'are'} missing")
    text = "; ".join(parts) + "."
    if question.scoring == "all_or_nothing":
        return f"{text} There are points for the complete answer only."
    return f"{text} Each wrong option takes away what a right one earns." if wrong else text


def _are(labels: list[str]) -> str:
    """ "A is", "A and C are", "A, C and D are"."""
    if len(labels) == 1:
        return f"{labels[0]} is"
    return f"{', '.join(labels[:-1])} and {labels[-1]} are"


KIND = MultipleChoiceKind()
