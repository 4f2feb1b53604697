"""True or false, in the words and signs of four languages."""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.grading_worker.wording import fold_confusables, tokens
from services.grading_worker.wording.matching import MatchQuality, best_match
from shared.contracts import AnswerKey, MatchKind, TrueFalse

from .base import Answer, Kind, Verdict

_TRUE = frozenset({
    "true", "t", "yes", "y", "right", "correct", "wahr", "w", "richtig", "r", "ja", "j", "stimmt", "vrai", "v",
    "oui", "exact", "juste", "verdadero", "cierto", "si", "correcto", "correcta"
})  # fmt: skip
_FALSE = frozenset({
    "false", "f", "no", "n", "wrong", "incorrect", "untrue", "falsch", "nein", "unwahr", "faux", "non", "inexact",
    "falso", "incorrecto", "incorrecta"
})  # fmt: skip
_NOT = frozenset(["not", "isnt", "nicht", "pas", "kein", "never", "nie", "jamais", "nunca"])
_TICK, _CROSS = frozenset("✓✔☑√"), frozenset("✗✘☒")
_LONG_TRUE = sorted(w for w in _TRUE if len(w) > 3)
_LONG_FALSE = sorted(w for w in _FALSE if len(w) > 3)
_PRINTED = tuple(
    form
    for yes, no in (("True", "False"), ("T", "F"), ("Wahr", "Falsch"), ("Richtig", "Falsch"), ("W", "F"), ("R", "F"),
                    ("Vrai", "Faux"), ("V", "F"), ("Verdadero", "Falso"))
    for form in (f"{yes} / {no}", f"{yes} or {no}", f"{yes} {no}", f"({yes}/{no})")
)  # fmt: skip


def _sides(words: Iterable[str]) -> tuple[set[bool], bool]:
    """Which truth values the words name, and whether a word had to be guessed by its spelling."""
    sides: set[bool] = set()
    guessed = False
    for word in words:
        if word in _TRUE or word in _FALSE:
            sides.add(word in _TRUE)
            continue
        if len(word) < 3:
            continue
        for value, forms in ((True, _LONG_TRUE), (False, _LONG_FALSE)):
            if best_match(word, forms, lenient=True, was_read=True).quality >= MatchQuality.CONFUSABLE:
                sides.add(value)
                guessed = True
    return sides, guessed


class TrueFalseKind(Kind[TrueFalse]):
    name = "true_false"
    one_line = True

    def expected(self, question: TrueFalse, key: AnswerKey) -> str:
        return "True" if question.answer else "False"

    def printed(self, question: TrueFalse) -> tuple[str, ...]:
        return _PRINTED

    def judge(self, question: TrueFalse, answer: Answer, key: AnswerKey) -> Verdict:
        said, sure, altered, doubt = self._read(answer.text)
        if said is None:
            return Verdict(0, "wrong", "Write either true or false.", 0.6, doubt or "Neither true nor false was read.")
        if said == question.answer:
            match: MatchKind = "close" if altered else "exact" if sure > 0.97 else "equivalent"
            return Verdict(1, match, f"Right: the statement is {str(said).lower()}.", sure, doubt, altered)
        return Verdict(0, "wrong", f"Not right: the statement is {str(not said).lower()}.", sure, doubt, altered)

    def _read(self, text: str) -> tuple[bool | None, float, bool, str | None]:
        """(value, how sure, altered, doubt) of an answer."""
        words = list(tokens(re.sub(r"[✓✔☑√✗✘☒]", " ", text[:400])))[:60]
        if not words:
            tick, cross = bool(_TICK & set(text)), bool(_CROSS & set(text))
            if tick != cross:
                return tick, 0.9 if tick else 0.85, False, None
            return None, 0.5, False, "There are both a tick and a cross." if tick else None
        if len(words) == 1 and words[0] == "x":
            return False, 0.6, False, "A cross may mark the statement as true or as false."
        # The first word decides ("True, because …") unless it is negated or contradicted.
        head, guessed = _sides(words[:1])
        everywhere, guessed_somewhere = _sides(w for w in words if len(w) > 3)
        negated = bool(_NOT & set(words[:4]))
        if len(head) == 1 and not negated:
            value = next(iter(head))
            if (not value) in everywhere:
                return value, 0.6, guessed, "Both true and false are written."
            sure = 0.99 if len(words) == 1 else 0.93
            return value, 0.75 if guessed else sure, guessed, None
        if len(everywhere) == 1:
            value = next(iter(everywhere)) ^ negated
            return value, 0.8, guessed_somewhere, None if len(words) <= 6 else "The answer is a longer sentence."
        if len(words) == 1:
            folded = fold_confusables(words[0])
            for value, forms in ((True, _TRUE), (False, _FALSE)):
                if len(folded) > 1 and folded in {fold_confusables(f) for f in forms}:
                    return value, 0.6, True, None
            if words[0] == "7":
                return True, 0.55, True, None
        return None, 0.5, False, "Both true and false are written." if everywhere else None


KIND = TrueFalseKind()
