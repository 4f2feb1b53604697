"""One letter out of several options."""

from __future__ import annotations

from shared.contracts import AnswerKey, SingleChoice

from ._options import option_lines, read_choice
from .base import Answer, Kind, Verdict


class SingleChoiceKind(Kind[SingleChoice]):
    name = "single_choice"
    one_line = True

    def expected(self, question: SingleChoice, key: AnswerKey) -> str:
        return f"{question.answer}) {question.options[question.answer]}"

    def printed(self, question: SingleChoice) -> tuple[str, ...]:
        return option_lines(question.options)

    def marked(self, question: SingleChoice, printed: str) -> str:
        return printed.partition(")")[0]

    def judge(self, question: SingleChoice, answer: Answer, key: AnswerKey) -> Verdict:
        chosen = read_choice(answer.text, question.options, was_read=answer.was_read)
        if not chosen.labels:
            return Verdict(
                0, "wrong", "This is none of the options: write the letter of one.", 0.75,
                "The answer names none of the options.",
            )  # fmt: skip
        if len(chosen.labels) > 1:
            return Verdict(0, "wrong", "Only one option may be chosen here.", 0.7, "More than one option is named.")
        (label,) = chosen.labels
        if label == question.answer:
            return Verdict(
                1, "close" if chosen.altered or chosen.slip else "equivalent" if chosen.by_text else "exact",
                f"Right: {label} is the correct option.", 0.99 * chosen.sure, chosen.doubt, chosen.altered,
            )  # fmt: skip
        return Verdict(
            0, "wrong", f"{label} is not the correct option.", 0.97 * chosen.sure, chosen.doubt, chosen.altered
        )


KIND = SingleChoiceKind()
