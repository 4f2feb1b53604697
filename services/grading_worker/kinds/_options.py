"""Which of the printed options an answer names: by label, by text, or by both."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from services.grading_worker.wording import MatchQuality, best_match, find_phrase, tokens
from services.grading_worker.wording.confusables import LETTER_LOOKALIKES

__all__ = ["SEVERAL", "Chosen", "option_lines", "read_choice"]

_LEAD = re.compile(
    r"^(?:(?:the|my|die|la|le|el)\s+)?(?:answer|option|choice|letter|antwort|réponse|respuesta|lösung)\b"
    r"(?:\s+(?:is|ist|est|es))?\s*[:=]?\s+",
    re.IGNORECASE,
)
# The doubt where several options are written out. It is none where several are asked for.
SEVERAL = "Several options are named."
_TICKS = re.compile(r"[✓✔☑✗✘☒×_…]+|\[\s*[xX]?\s*\]|\(\s*\)")
# Cyrillic and Greek capitals that look exactly like Latin ones: a matter of keyboard or reader, not of meaning.
_SAME_SHAPE = str.maketrans("АВСЕНКМОРТХаесорхΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABCEHKMOPTXaecopxABEZHIKMNOPTX")
_JOIN = re.compile(r"\s*(?:[,;/+&\n]|\b(?:and|und|et|y|e)\b)\s*", re.IGNORECASE)
_WRAP = " .,:;)(][}{\"'*-–—=_#"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The labels named. ``sure`` in [0, 1]; ``altered``: look-alikes were replaced; ``by_text``: the option was
    written out; ``doubt``: what a person should know; ``slip``: its words were misspelt."""

    labels: tuple[str, ...]
    sure: float = 1.0
    altered: bool = False
    by_text: bool = False
    slip: bool = False
    doubt: str | None = None


def option_lines(options: Mapping[str, str]) -> tuple[str, ...]:
    """The options as a sheet prints them."""
    return tuple(f"{label}) {text}" for label, text in options.items())


def read_choice(text: str, options: Mapping[str, str], *, was_read: bool) -> Chosen:
    """The options that ``text`` names, in the order of ``options``; none where it names nothing known."""
    text = unicodedata.normalize("NFKC", _TICKS.sub(" ", text[:600])).translate(_SAME_SHAPE).strip()
    text = _LEAD.sub("", text).strip(_WRAP) if text else text
    labels = {label.casefold(): label for label in options}
    whole = _one(text, labels, options, was_read)
    if whole is not None:
        return whole
    parts = [p for p in (part.strip(_WRAP) for part in _JOIN.split(text)) if p][:60]
    if len(parts) > 1:
        read = [_one(p, labels, options, was_read) or _run(p, labels) for p in parts]
        named = [r for r in read if r is not None]
        if named and len(named) == len(parts):
            return _merge(named, options)
        if named and len(parts) <= 8:
            return _with_doubt(_merge(named, options), "Part of the answer names none of the options.")
    run = _run(text, labels)
    if run is not None:
        return run
    lead = re.match(r"^[(\[]?\s*([^\s).:\]]{1,8})\s*[).:\]]\s*\S", text)
    if lead and lead[1].casefold() in labels:
        return Chosen((labels[lead[1].casefold()],), 0.7, doubt="The letter and the words beside it do not agree.")
    words = tokens(text)
    hits = [
        label for label, option in options.items()
        if len("".join(tokens(option))) > 2 and find_phrase(words, option, lenient=True, was_read=was_read)
    ]  # fmt: skip
    if hits:
        return Chosen(tuple(hits), 0.75, by_text=True, doubt=None if len(hits) == 1 else SEVERAL)
    alike = _lookalike(text, labels)
    return alike or Chosen((), 0.8)


def _one(text: str, labels: dict[str, str], options: Mapping[str, str], was_read: bool) -> Chosen | None:
    """One option named by the whole of ``text``: "B", "B) Mars" or "Mars"."""
    bare = text.strip(_WRAP)
    if bare.casefold() in labels:
        return Chosen((labels[bare.casefold()],))
    head = re.match(r"^[(\[]?\s*([^\s).:\]]{1,8})\s*(?:[).:\]\-–]+|\s)\s*(\S.*)$", text, re.DOTALL)
    if head and head[1].casefold() in labels:
        label = labels[head[1].casefold()]
        beside = best_match(head[2], (options[label],), lenient=True, was_read=was_read)
        if beside.quality >= MatchQuality.NEAR:
            return Chosen((label,), 0.98 if beside.quality >= MatchQuality.CONFUSABLE else 0.85)
        if head[0][len(head[1]) :].lstrip()[:1] in (")", ".", ":", "]"):
            return None  # the label and the words beside it differ, or more options follow
    qualities = {o: best_match(text, (t,), lenient=True, was_read=was_read) for o, t in options.items()}
    best = max(qualities, key=lambda o: (qualities[o].quality, qualities[o].similarity))
    if qualities[best].quality >= MatchQuality.CONFUSABLE:
        # An option that is as near as the best one makes a slip of spelling ambiguous.
        rivals = [o for o in options if o != best and qualities[o].quality >= MatchQuality.CONFUSABLE]
        exact = qualities[best].quality >= MatchQuality.EQUIVALENT
        if exact or not rivals:
            return Chosen(
                (best,), 0.95 if exact else 0.85, qualities[best].quality is MatchQuality.CONFUSABLE, True, not exact
            )
    return _lookalike(bare, labels) if len(bare) <= 2 else None


def _run(text: str, labels: dict[str, str]) -> Chosen | None:
    """One-letter labels written as a run or with spaces: "AC", "A C"."""
    letters = [c for c in text if not c.isspace() and c not in ".,"]
    if not 1 <= len(letters) <= len(labels) or any(c.casefold() not in labels for c in letters):
        return None
    if len({c.casefold() for c in letters}) != len(letters):
        return None
    # A lower-case run may be a word ("bad", "ace"): a person looks.
    word = len(letters) > 2 and text.islower() and " " not in text
    named = tuple(label for low, label in labels.items() if low in {c.casefold() for c in letters})
    return Chosen(named, 0.7 if word else 0.95, doubt="The letters may be a word and no choice." if word else None)


def _lookalike(text: str, labels: dict[str, str]) -> Chosen | None:
    for letter in LETTER_LOOKALIKES.get(text, ""):
        if letter.casefold() in labels:
            return Chosen((labels[letter.casefold()],), 0.6, altered=True)
    return None


def _merge(named: list[Chosen], options: Mapping[str, str]) -> Chosen:
    chosen = {label for c in named for label in c.labels}
    return Chosen(
        tuple(label for label in options if label in chosen),
        min(c.sure for c in named),
        any(c.altered for c in named),
        any(c.by_text for c in named),
        any(c.slip for c in named),
        next((c.doubt for c in named if c.doubt), None),
    )


def _with_doubt(chosen: Chosen, doubt: str) -> Chosen:
    return Chosen(chosen.labels, min(chosen.sure, 0.6), chosen.altered, chosen.by_text, chosen.slip, doubt)
