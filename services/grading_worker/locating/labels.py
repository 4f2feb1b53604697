"""The word that a sheet prints before the place for an answer."""

from __future__ import annotations

import re

from rapidfuzz.distance import OSA

from services.grading_worker.wording import strip_accents

__all__ = ["find_label"]

_LABELS = frozenset({
    "answer", "answers", "ans", "antwort", "antworten", "losung", "loesung", "ergebnis", "reponse", "reponses",
    "rep", "respuesta", "respuestas", "resp", "solution", "solucion"
})  # fmt: skip
_LONG = tuple(sorted(w for w in _LABELS if len(w) >= 6))
# What may stand behind a glued label without making another word of it ("answered").
_NO_GLUE = re.compile(r"(?:ed|ing|s|e|en|er|n|able|es)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_COLON = re.compile(r"\s*(?:[:;=]|\.{2,}|…|_|\.(?=\s|_)|[-–—>]{1,2}(?=\s))")


def _is_label(word: str, *, fuzzy: bool) -> bool:
    folded = strip_accents(word.casefold())
    if folded in _LABELS:
        return True
    if not fuzzy or len(folded) < 5:
        return False
    return any(OSA.distance(folded, label, score_cutoff=2) <= (1 if len(label) < 8 else 2) for label in _LONG) or any(
        OSA.distance(folded.translate(_DIGITS), label, score_cutoff=1) <= 1 for label in _LONG
    )


_DIGITS = str.maketrans({"3": "e", "5": "s", "4": "a", "0": "o", "1": "i", "8": "b"})


def find_label(text: str) -> tuple[int, int] | None:
    """(start, end) of an answer label in ``text``, with its colon; None where there is none.

    At the beginning of a line the plain word is enough; further on, or misread, it needs a colon behind it.
    """
    for n, m in enumerate(_WORD.finditer(text[:1000])):
        if not m[0][0].isalpha() or len(m[0]) < 3:
            continue
        colon = _COLON.match(text, m.end())
        if colon and _is_label(m[0], fuzzy=True):
            return m.start(), colon.end()
        if n == 0:
            if (
                _is_label(m[0], fuzzy=False)
                and m[0][0].isupper()
                and (m.end() == len(text.rstrip()) or _value(text, m.end()))
            ):
                return m.start(), m.end()
            folded = strip_accents(m[0].casefold())
            for label in _LONG:
                if folded.startswith(label) and len(folded) == len(m[0]) and len(m[0]) > len(label) + 1:
                    rest = m[0][len(label) :]
                    if m[0][0].isupper() and not _NO_GLUE.fullmatch(rest):
                        return m.start(), m.start() + len(label)
    return None


_INSTRUCTION = re.compile(
    r"\s+(?:the|all|each|every|in|any|only|both|these|sheet|key|questions?|with|by|with|section)\b", re.IGNORECASE
)


def _value(text: str, at: int) -> bool:
    """Whether what follows a label without a colon can be an answer rather than an instruction ("Answer all …")."""
    return _INSTRUCTION.match(text, at) is None
