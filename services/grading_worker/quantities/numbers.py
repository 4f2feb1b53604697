"""Numbers in handwriting: separators of four locales, fractions, powers of ten, π and number words.

Nothing is evaluated: each form is matched by one bounded expression and computed here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

from services.grading_worker.wording.confusables import DIGIT_LOOKALIKES

__all__ = ["Candidate", "Locale", "find_numbers"]

Locale = Literal["en", "de", "fr", "es"]

MAX_TEXT = 400
_MAX_CANDIDATES = 24
# Beyond this an exponent is noise, and 10**e would only cost time.
_MAX_EXPONENT = 60

_SUPERSCRIPT = {**{ord(c): str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, ord("⁻"): "-", ord("⁺"): "+"}
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile("([¼½¾⅐-⅞])")
_TABLE = {
    **dict.fromkeys(map(ord, "‐‑‒–—−﹣－"), "-"),
    **dict.fromkeys(map(ord, "×✕✖⋅·∙•"), "×"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\t"), " "),
    **dict.fromkeys(map(ord, "’‘`´"), "'"),
    ord("\u2044"): "/", ord("\u2215"): "/", ord("\u066b"): ".",
}  # fmt: skip
_FRAC = re.compile(r"(-?)\\[dt]?frac\s*\{\s*([^{}]{1,12})\s*\}\s*\{\s*([^{}]{1,12})\s*\}")

_DIGITS = r"(?:\d{1,3}(?:[ ']\d{3})+(?:[.,]\d+)?(?!\d)|\d+(?:[.,]\d+)*|[.,]\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]\s?)?(?P<body>{_DIGITS})"
    r"(?:(?P<mixed>\s+\d{1,4}\s?/\s?\d{1,4}(?![\d/]))|(?P<frac>\s?/\s?(?P<fsign>-?)\d{1,9}(?:[.,]\d+)?(?![\d]))"
    r"|(?P<exp>(?:\s?[×xX*]\s?10\s?\^\s?|[eE])\(?(?P<expv>[-+]?\s?\d{1,3})\)?)"
    r"|(?P<lost>\s?[×xX*]\s?10\s?(?P<lostv>-?\d{1,2})(?!\d)))?"
    r"(?P<pi>\s?[×*]?\s?(?:π|pi\b)(?:\s?/\s?(?P<pidiv>\d{1,4}))?)?"
)
_BARE_PI = re.compile(r"(?P<sign>-\s?)?(?:π|\bpi\b)(?:\s?/\s?(?P<pidiv>\d{1,4}))?")
_BARE_POWER = re.compile(r"(?P<sign>-\s?)?\b10\s?\^\s?\(?(?P<exp>[-+]?\s?\d{1,3})\)?")

# Letters and signs that may stand for digits, in runs that hold at least one digit, or alone.
_LOOKALIKE = re.escape("".join(DIGIT_LOOKALIKES))
_SUSPECT = re.compile(rf"(?<![^\W\d_])[\d{_LOOKALIKE}]*\d[\d{_LOOKALIKE}.,]*(?![^\W\d_])")
_ALL_SUSPECT = re.compile(rf"[-+]?[{_LOOKALIKE}]{{1,4}}(?:[.,][{_LOOKALIKE}]{{1,4}})?")
_SPACED_POINT = re.compile(r"(?<=\d)(?:\s[.,]\s?|[.,]\s)(?=\d)")

_WORDS = {
    w: n
    for row in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty",
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn zwanzig",
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize",
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince",
    )
    for n, w in enumerate(row.split())
} | {"eine": 1, "une": 1, "una": 1, "vingt": 20, "veinte": 20, "hundred": 100, "hundert": 100, "cent": 100, "cien": 100}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to read a number out of a text.

    ``rest`` is what follows it (a unit, perhaps). ``altered`` says that characters had to be replaced
    or a lost sign guessed; ``ambiguous`` that a separator could be meant either way and the
    key's locale did not favour this reading. ``rounding`` is half a unit of the last digit written.
    """

    value: float
    written: str
    rest: str
    start: int
    altered: bool = False
    ambiguous: bool = False
    rounding: float = 0.0


def clean(text: str) -> str:
    """``text`` (cut to MAX_TEXT characters) with one form of minus, times, space and power."""
    text = text[:MAX_TEXT]
    text = _FRAC.sub(lambda m: f"{m[1]}{m[2]}/{m[3]}", text)
    text = _SUPERSCRIPTS.sub(lambda m: "^" + m[0].translate(_SUPERSCRIPT), text)
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[1]), text)
    text = unicodedata.normalize("NFKC", text).translate(_TABLE).replace("**", "^").replace("\\times", "×")
    text = text.replace("\\cdot", "×").replace("\\pi", "π").replace("$", "").replace("\n", " ; ")
    return text[: 2 * MAX_TEXT]


def _separated(body: str, locale: Locale) -> list[tuple[float, bool, float]]:
    """The values that digits with separators can mean: (value, ambiguous, rounding), the likeliest first."""
    body = body.replace(" ", "").replace("'", "")
    marks = [c for c in body if c in ".,"]
    if not marks:
        # A whole number says nothing about its rounding: 300 is taken at its word.
        return [(float(body), False, 0.0)]

    def as_decimal(mark: str) -> tuple[float, float]:
        other = "," if mark == "." else "."
        plain = body.replace(other, "").replace(mark, ".")
        return float(plain), 0.5 * 10.0 ** -len(plain.partition(".")[2])

    if len(set(marks)) == 2:
        if marks.count(marks[-1]) > 1:
            return []
        value, rounding = as_decimal(marks[-1])
        return [(value, False, rounding)]
    mark = marks[0]
    groups = body.split(mark)
    grouped = 1 <= len(groups[0]) <= 3 and groups[0] != "0" and all(len(g) == 3 for g in groups[1:])
    if len(marks) > 1:
        return [(float("".join(groups)), not grouped, 0.0)]
    value, rounding = as_decimal(mark)
    if not grouped:
        return [(value, False, rounding)]
    thousands = (float("".join(groups)), 0.0)
    point_is_decimal = locale == "en"
    decimal_first = (mark == ".") == point_is_decimal
    first, second = ((value, rounding), thousands) if decimal_first else (thousands, (value, rounding))
    return [(first[0], False, first[1]), (second[0], True, second[1])]


def _ratio(text: str, locale: Locale) -> float | None:
    top, _, bottom = text.partition("/")
    tops, bottoms = _separated(top.strip(), locale), _separated(bottom.strip(), locale)
    if not tops or not bottoms or not bottoms[0][0]:
        return None
    return tops[0][0] / bottoms[0][0]


def _from_match(m: re.Match[str], text: str, locale: Locale) -> list[Candidate]:
    readings = _separated(m["body"], locale)
    sign = -1.0 if m["sign"] and "-" in m["sign"] else 1.0
    # "5-3": a minus right after a digit or letter belongs to an expression, not to the number.
    if sign < 0 and m.start() and text[m.start() - 1].isalnum():
        sign = 1.0
    out: list[Candidate] = []
    for value, ambiguous, rounding in readings:
        altered = False
        if m["mixed"]:
            part = _ratio(m["mixed"].strip(), locale)
            if part is None:
                continue
            value, rounding = value + part, 0.0
        elif m["frac"]:
            part = _ratio("1/" + m["frac"].replace("/", "").replace("-", "").strip(), locale)
            if part is None:
                continue
            value, rounding = value * part * (-1 if m["fsign"] else 1), 0.0
        elif m["exp"] or m["lost"]:
            power = int((m["expv"] or m["lostv"]).replace(" ", ""))
            if abs(power) > _MAX_EXPONENT:
                continue
            value, rounding = value * 10.0**power, rounding * 10.0**power
            altered = bool(m["lost"])  # the exponent was read beside the 10 instead of above it
        if m["pi"]:
            value, rounding = value * math.pi / float(int(m["pidiv"]) or 1 if m["pidiv"] else 1), 0.0
        if math.isfinite(value):
            rest = text[m.end() :].strip()
            out.append(Candidate(sign * value, m[0].strip(), rest, m.start(), altered, ambiguous, rounding))
    return out


def _scan(text: str, locale: Locale) -> list[Candidate]:
    out: list[Candidate] = []
    taken: list[tuple[int, int]] = []
    for m in _BARE_POWER.finditer(text):
        before = text[: m.start()].rstrip()
        if before.endswith(("×", "x", "X", "*")) or abs(int(m["exp"].replace(" ", ""))) > _MAX_EXPONENT:
            continue
        value = 10.0 ** int(m["exp"].replace(" ", "")) * (-1 if m["sign"] else 1)
        out.append(Candidate(value, m[0], text[m.end() :].strip(), m.start()))
        taken.append(m.span())
    for m in _NUMBER.finditer(text):
        if any(a <= m.start() < b for a, b in taken):
            continue
        # Digits inside a word or right after a letter are an exponent or an index ("m2", "CO2").
        if m.start() and (text[m.start() - 1].isalpha() or text[m.start() - 1] in "^_") and not m["sign"]:
            continue
        if m.start() and m["sign"] and text[m.start() - 1] == "^":
            continue
        out.extend(_from_match(m, text, locale))
        taken.append(m.span())
        if len(out) >= _MAX_CANDIDATES:
            break
    if not out and (m2 := _BARE_PI.search(text)):
        value = math.pi / float(int(m2["pidiv"]) or 1 if m2["pidiv"] else 1)
        out.append(Candidate(-value if m2["sign"] else value, m2[0], text[m2.end() :].strip(), m2.start()))
    return sorted(out, key=lambda c: (c.start, c.ambiguous))


def _undo_lookalikes(text: str) -> str:
    def digits(m: re.Match[str]) -> str:
        return "".join(DIGIT_LOOKALIKES.get(c, c) for c in m[0])

    head, space, tail = text.partition(" ")
    if _ALL_SUSPECT.fullmatch(head):
        return "".join(DIGIT_LOOKALIKES.get(c, c) for c in head) + space + tail
    return _SUSPECT.sub(digits, text)


def find_numbers(text: str, locale: Locale) -> list[Candidate]:
    """All numbers of ``text`` in the order written; after an "=" only those behind the last one that has any.

    Candidates that had characters replaced come last. Never raises; at most MAX_TEXT characters are read.
    """
    cleaned = clean(text)
    plain = _results(cleaned, locale)
    repaired = _SPACED_POINT.sub(lambda m: m[0].strip(), _undo_lookalikes(cleaned))
    seen = {(c.value, c.rest) for c in plain}
    guesses = [replace(c, altered=True) for c in _results(repaired, locale)] if repaired != cleaned else []
    if not plain and not guesses:
        words = re.findall(r"[^\W\d_]+", cleaned.casefold())
        plain = [
            Candidate(float(_WORDS[w]), w, cleaned.casefold().partition(w)[2].strip(), i)
            for i, w in enumerate(words[:40])
            if w in _WORDS
        ]
    return plain + [c for c in guesses if (c.value, c.rest) not in seen]


def _results(text: str, locale: Locale) -> list[Candidate]:
    parts = re.split(r"[=≈~≃]", text)
    for i in range(len(parts) - 1, -1, -1):
        found = _scan(parts[i].strip(), locale)
        if found:
            return found
    return []
