"""Normal forms of words: what is left when case, accents, punctuation and articles do not count."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["squeeze", "strip_accents", "tokens"]

# Articles of the four locales. One-letter ones are dropped only in front ("vitamin A" keeps its A).
_ARTICLES = frozenset(
    [
        "the",
        "an",
        "der",
        "die",
        "das",
        "den",
        "dem",
        "des",
        "ein",
        "eine",
        "einen",
        "einem",
        "einer",
        "le",
        "la",
        "les",
        "un",
        "une",
        "des",
        "el",
        "los",
        "las",
        "una",
        "unos",
        "unas",
    ]
)
_LEADING_ONLY = frozenset({"a"})

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_APOSTROPHES = dict.fromkeys(map(ord, "’‘`´ʼ"), "'")
_TABLE = _DASHES | _APOSTROPHES
# Letters and digits hold a word together, and so do a point or comma between digits ("3.5").
_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+", re.UNICODE)
_ELISION = re.compile(r"\b[ldjnmtsc]'(?=[^\W\d_])")


def strip_accents(text: str) -> str:
    """Without diacritics: ``é`` → ``e``, ``ü`` → ``u``. Casefolding (``ß`` → ``ss``) is the caller's."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@lru_cache(maxsize=8192)  # the accepted forms are compared with many answers
def tokens(text: str, *, accents: bool = False) -> tuple[str, ...]:
    """The words of ``text``, casefolded, without punctuation and articles; without accents unless ``accents``.

    A text of nothing but articles keeps them, so that an answer never becomes empty by normalising.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_TABLE).casefold()
    folded = unicodedata.normalize("NFC", folded)
    if not accents:
        folded = strip_accents(folded)
    folded = _ELISION.sub("", folded).replace("'", "")
    words = _WORD.findall(folded)
    kept = [w for i, w in enumerate(words) if not (w in _ARTICLES or (i == 0 and w in _LEADING_ONLY))]
    return tuple(kept or words)


def squeeze(text: str) -> str:
    """Letters and digits only, casefolded and without accents: equal for words glued or spaced differently."""
    folded = strip_accents(unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if c.isalnum())
