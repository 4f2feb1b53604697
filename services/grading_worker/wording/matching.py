"""How well a given text matches an accepted one.

Lenient spelling allows slips, never another word: numbers must agree exactly, and pairs that differ
by one of the affixes in which school subjects put all the meaning (hyper/hypo, -ite/-ate) are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from rapidfuzz.distance import OSA

from .confusables import fold_confusables
from .normalise import tokens

__all__ = ["MatchQuality", "TextMatch", "best_match", "find_phrase", "has_hedge", "is_negated", "words_compatible"]

# Longer texts are cut before they are compared: distances are quadratic in the worst case.
_COMPARED = 600
# Words of an answer in which a phrase is searched for.
_SEARCHED = 300

_OPPOSED_PREFIXES = (
    ("in", "de"), ("hyper", "hypo"), ("endo", "exo"), ("inter", "intra"), ("pro", "anti"), ("pre", "post"),
    ("macro", "micro"), ("mono", "di"), ("mono", "poly"), ("over", "under"), ("up", "down"), ("homo", "hetero"),
    ("im", "ex"), ("in", "ex"), ("an", "kat"), ("an", "cat"), ("zu", "ab"), ("auf", "ab"), ("ein", "aus"),
    ("vor", "nach"), ("mi", "mei"), ("af", "ef"), ("a", "e"), ("di", "tri"), ("iso", "allo"), ("ad", "ab"),
)  # fmt: skip
_NEGATING_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "anti", "des", "a", "mis")
_OPPOSED_SUFFIXES = (
    ("ite", "ate"), ("ite", "ide"), ("ate", "ide"), ("it", "at"), ("it", "id"), ("at", "id"), ("ane", "ene"),
    ("ane", "yne"), ("ene", "yne"), ("an", "en"), ("an", "in"), ("en", "in"), ("ose", "ase"), ("or", "ee"),
    ("er", "ee"),     ("ous", "ic"), ("ful", "less"),
)  # fmt: skip
_NEGATIONS = frozenset(
    [
        "not",
        "no",
        "never",
        "without",
        "isnt",
        "doesnt",
        "dont",
        "cannot",
        "cant",
        "wasnt",
        "arent",
        "nicht",
        "kein",
        "keine",
        "keinen",
        "nie",
        "ohne",
        "pas",
        "non",
        "jamais",
        "sans",
        "nunca",
        "sin",
        "ni",
    ]
)
_FUNCTION_WORDS = frozenset(
    {"of", "in", "to", "and", "is", "at", "on", "von", "und", "im", "de", "du", "et", "y", "del", "al"}
)
_HEDGES = frozenset(["or", "oder", "ou", "either", "maybe", "perhaps", "vielleicht", "entweder"])


class MatchQuality(IntEnum):
    """Ordered: a higher quality is a better match."""

    NONE = 0
    NEAR = 1  # not accepted, but close enough that a person should look
    CONFUSABLE = 2  # equal once look-alike characters are replaced: accepted, for review
    SPELLING = 3  # accepted with a spelling slip
    EQUIVALENT = 4  # equal but for case, accents, punctuation, articles or spaces
    EXACT = 5


@dataclass(frozen=True, slots=True)
class TextMatch:
    """``accepted`` is the form that matched best; ``similarity`` in [0, 1] by edit distance."""

    quality: MatchQuality
    similarity: float
    accepted: str


def allowed_slips(length: int) -> int:
    """Edits that a word or phrase of ``length`` letters may be off: none up to 3, then about one in six."""
    return 0 if length <= 3 else 1 if length <= 7 else 2 if length <= 13 else min(6, length // 7)


def _opposed(a: str, b: str) -> bool:
    """Whether two different words differ just by affixes that change the meaning."""
    for x, y in (*_OPPOSED_PREFIXES, *(("", p) for p in _NEGATING_PREFIXES)):
        for p, q in ((x, y), (y, x)):
            if a.startswith(p) and b.startswith(q) and len(a) - len(p) >= 3 and a[len(p) :] == b[len(q) :]:
                return True
    for x, y in _OPPOSED_SUFFIXES:
        for p, q in ((x, y), (y, x)):
            if a.endswith(p) and b.endswith(q) and len(a) - len(p) >= 3 and a[: -len(p)] == b[: -len(q)]:
                return True
    return False


def words_compatible(given: Sequence[str], accepted: Sequence[str]) -> bool:
    """Whether a small edit distance between the two may be a slip of spelling, rather than another meaning."""
    digits_given = [w for w in given if any(c.isdigit() for c in w)]
    if digits_given != [w for w in accepted if any(c.isdigit() for c in w)]:
        return False
    if (_NEGATIONS & set(given)) != (_NEGATIONS & set(accepted)):
        return False
    if len(given) == len(accepted):
        return not any(a != b and _opposed(a, b) for a, b in zip(given, accepted, strict=True))
    short, long = sorted((list(given), list(accepted)), key=len)
    # A whole word left out is no slip ("vitamin" for "vitamin A"), unless it says nothing.
    return not set(short) <= set(long) or set(long) - set(short) <= _FUNCTION_WORDS


def _compare(given: str, accepted: str, *, lenient: bool, was_read: bool) -> tuple[MatchQuality, float]:
    given, accepted = given[:_COMPARED], accepted[:_COMPARED]
    if given.strip() == accepted.strip():
        return MatchQuality.EXACT, 1.0
    if tokens(given, accents=True) == tokens(accepted, accents=True):
        return MatchQuality.EQUIVALENT, 1.0
    g, a = tokens(given), tokens(accepted)
    joined_g, joined_a = "".join(g), "".join(a)
    if not joined_g or not joined_a:
        # Signs only ("+", "→"): equal as written, or not at all.
        return MatchQuality.NONE, 0.0
    # German writes "ae" for "ä" where the keyboard has none.
    same = joined_g == joined_a or _umlauts_spelt_out(given) == _umlauts_spelt_out(accepted)
    if same:
        if lenient or "".join(tokens(given, accents=True)) == "".join(tokens(accepted, accents=True)):
            return MatchQuality.EQUIVALENT, 1.0
        return MatchQuality.NEAR, 0.99
    # So far apart that neither a slip nor look-alikes explain it.
    if min(len(joined_g), len(joined_a)) < 0.4 * max(len(joined_g), len(joined_a)):
        return MatchQuality.NONE, 0.0
    distance = OSA.distance(joined_g, joined_a)
    similarity = 1 - distance / max(len(joined_g), len(joined_a))
    if distance and fold_confusables(joined_g) == fold_confusables(joined_a):
        digits_differ = _digits(joined_g) != _digits(joined_a)
        if digits_differ or was_read:
            return MatchQuality.CONFUSABLE, similarity
    slips = allowed_slips(len(joined_a))
    if lenient and distance <= slips:
        return (MatchQuality.SPELLING if words_compatible(g, a) else MatchQuality.NEAR), similarity
    near = len(joined_a) > 3 and (similarity >= 0.7 or (distance <= slips + 1 and similarity >= 0.6))
    return (MatchQuality.NEAR if near else MatchQuality.NONE), similarity


@lru_cache(maxsize=8192)
def _umlauts_spelt_out(text: str) -> str:
    folded = text.casefold()
    for umlaut, spelt in (("ä", "ae"), ("ö", "oe"), ("ü", "ue")):
        folded = folded.replace(umlaut, spelt)
    return "".join(tokens(folded))


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def best_match(given: str, accepted: Iterable[str], *, lenient: bool, was_read: bool) -> TextMatch:
    """The best match of ``given`` among ``accepted``.

    ``was_read``: the text comes from reading an image, so look-alike letters count as confusable
    rather than as spelling.
    """
    best = TextMatch(MatchQuality.NONE, 0.0, "")
    for form in accepted:
        quality, similarity = _compare(given, form, lenient=lenient, was_read=was_read)
        if (quality, similarity) > (best.quality, best.similarity):
            best = TextMatch(quality, similarity, form)
            if quality is MatchQuality.EXACT:
                break
    return best


def find_phrase(
    words: Sequence[str], phrase: str, *, lenient: bool, was_read: bool
) -> tuple[int, int, MatchQuality] | None:
    """Where ``phrase`` stands within ``words`` as (start, end, quality), the best place; None when nowhere.

    Only accepted qualities are found (CONFUSABLE and better). A window may be a word longer or
    shorter than the phrase, since reading glues and splits words.
    """
    target = tokens(phrase)
    if not target:
        return None
    form, length = " ".join(target), len("".join(target))
    slack = allowed_slips(length) + 2
    words = words[:_SEARCHED]
    joined_target = "".join(target)
    best: tuple[int, int, MatchQuality] | None = None
    for size in sorted({max(1, len(target) - 1), len(target), len(target) + 1}, key=lambda n: abs(n - len(target))):
        for start in range(len(words) - size + 1):
            window = words[start : start + size]
            if abs(sum(map(len, window)) - length) > slack:
                continue
            # Look-alikes of two letters for one are the dearest that may still be accepted.
            if OSA.distance("".join(window), joined_target, score_cutoff=2 * slack) > 2 * slack:
                continue
            quality, _ = _compare(" ".join(window), form, lenient=lenient, was_read=was_read)
            if quality >= MatchQuality.CONFUSABLE and (best is None or quality > best[2]):
                best = (start, start + size, quality)
    return best


def is_negated(words: Sequence[str], start: int) -> bool:
    """Whether one of the three words before ``start`` negates what follows."""
    return bool(_NEGATIONS & set(words[max(0, start - 3) : start]))


def has_hedge(words: Sequence[str]) -> bool:
    """Whether the words offer alternatives ("Paris or London")."""
    return bool(_HEDGES & set(words))
