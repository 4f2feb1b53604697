"""Comparing what a pupil wrote with what was expected, as text: normal forms, confusables, lenient spelling."""

from .confusables import fold_confusables
from .matching import MatchQuality, TextMatch, best_match, find_phrase, has_hedge, is_negated, words_compatible
from .normalise import squeeze, strip_accents, tokens

__all__ = [
    "MatchQuality",
    "TextMatch",
    "best_match",
    "find_phrase",
    "fold_confusables",
    "has_hedge",
    "is_negated",
    "squeeze",
    "strip_accents",
    "tokens",
    "words_compatible",
]
