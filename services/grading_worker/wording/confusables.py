"""Characters that a reader of handwriting takes for one another."""

from __future__ import annotations

__all__ = ["DIGIT_LOOKALIKES", "LETTER_LOOKALIKES", "fold_confusables"]

# Letter → the digit that it is mistaken for.
DIGIT_LOOKALIKES = {
    "O": "0", "o": "0", "Q": "0", "D": "0",
    "l": "1", "I": "1", "i": "1", "|": "1", "!": "1",
    "Z": "2", "z": "2",
    "S": "5", "s": "5",
    "G": "6", "b": "6",
    "B": "8",
    "g": "9", "q": "9",
}  # fmt: skip
# Digit or sign → the letters that it is mistaken for, likeliest first (upper case: used for option labels).
LETTER_LOOKALIKES = {
    "0": "ODQ", "1": "IL", "|": "I", "!": "I", "4": "A", "5": "S", "6": "GB", "8": "B", "13": "B", "9": "G",
    "(": "C", "{": "C", "€": "E", "£": "E", "2": "Z", "ß": "B", "7": "T", "/": "I",
}  # fmt: skip

# One representative per class; longer sequences first. Applied to casefolded text.
_CLASSES = (("rn", "m"), ("vv", "w"), ("cl", "d"), ("ii", "u"))
_SINGLE = str.maketrans({"0": "o", "q": "g", "1": "l", "i": "l", "|": "l", "j": "l", "5": "s", "8": "b", "6": "b",
                         "9": "g", "2": "z", "4": "a"})  # fmt: skip


def fold_confusables(folded: str) -> str:
    """A casefolded text with every class of look-alikes replaced by one of them.

    Two texts with the same fold differ only in characters that reading confuses.
    """
    for sequence, one in _CLASSES:
        folded = folded.replace(sequence, one)
    return folded.translate(_SINGLE)
