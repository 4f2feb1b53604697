"""Several letters out of several options."""

from __future__ import annotations

from shared.contracts import AnswerKey, MatchKind, MultipleChoice

from ._options import option_lines, read_choice
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
                0, "wrong", "This names none of the options: write their letters.", 0.75,
                "the answer names none of the options",
            )  # fmt: skip
        right = [label for label in chosen.labels if label in question.answers]
        wrong = [label for label in chosen.labels if label not in question.answers]
        missed = len(question.answers) - len(right)
        # "several options are named" is what is asked for here.
        doubt = None if chosen.doubt == "several options are named" else chosen.doubt
        if not wrong and not missed:
            match: MatchKind = "close" if chosen.altered or chosen.slip else "equivalent" if chosen.by_text else "exact"
            return Verdict(
                1, match, "Right: these are all the correct options.", 0.99 * chosen.sure, doubt, chosen.altered
            )
        share = max(0.0, (len(right) - len(wrong)) / len(question.answers)) if question.scoring == "partial" else 0.0
        parts = [f"{', '.join(right)} {'is' if len(right) == 1 else 'are'} right"] if right else []
        if wrong:
            parts.append(f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not")
        if missed and right:
            parts.append(f"{missed} more {'was' if missed == 1 else 'were'} to be found")
        feedback = "; ".join(parts) + "."
        return Verdict(
            share, "partial" if share > 0 else "wrong", feedback[0].upper() + feedback[1:], 0.93 * chosen.sure, doubt,
            chosen.altered,
        )  # fmt: skip


KIND = MultipleChoiceKind()
