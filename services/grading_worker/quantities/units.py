"""Units as pupils write them, compared through pint.

pint never sees a pupil's text: a unit is split here into at most a few names with small
exponents, each name of letters only, and only names are looked up.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pint
from rapidfuzz.distance import Levenshtein

from services.grading_worker.wording.confusables import fold_confusables

__all__ = ["UnitReading", "compare_units", "same_dimension"]

MAX_UNIT = 40
_MAX_FACTORS = 6
_MAX_EXPONENT = 9

_lock = threading.RLock()  # pint defines prefixed units while looking names up

_SUPERSCRIPT = {ord(c): str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {ord("⁻"): "-", ord("⁺"): ""}
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_FACTOR = re.compile(r"(?P<op>[*/])?(?P<name>[A-Za-z\u00b5\u03a9]{1,24}|%|‰)(?:\^?(?P<exp>-?\d))?")

# Written forms → names that pint knows. Looked up as written first, then casefolded.
_SYNONYMS = {
    "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "mps": "m/s", "qm": "m^2", "qcm": "cm^2", "qkm": "km^2",
    "ccm": "cm^3", "cbm": "m^3", "cc": "cm^3", "sqm": "m^2",
    "sec": "s", "secs": "s", "sek": "s", "sekunde": "s", "sekunden": "s", "seconde": "s", "secondes": "s",
    "segundo": "s", "segundos": "s", "seg": "s", "std": "h", "stunde": "h", "stunden": "h", "hr": "h", "hrs": "h",
    "heure": "h", "heures": "h", "hora": "h", "horas": "h", "mins": "min", "minuten": "min", "minutos": "min",
    "tag": "day", "tage": "day", "jour": "day", "jours": "day", "dia": "day", "dias": "day", "jahr": "year",
    "jahre": "year", "an": "year", "ans": "year", "annee": "year", "ano": "year", "anos": "year", "yrs": "year",
    "woche": "week", "wochen": "week", "metern": "m", "metre": "m", "metres": "m", "mètre": "m", "mètres": "m",
    "metro": "m", "metros": "m", "kilometer": "km", "kilometern": "km", "kilometre": "km", "kilometres": "km",
    "kilomètre": "km", "kilomètres": "km", "kilometro": "km", "kilometros": "km", "zentimeter": "cm",
    "centimetre": "cm", "centimetres": "cm", "millimetre": "mm", "millimetres": "mm",
    "gramm": "g", "gramme": "g", "grammes": "g", "gramo": "g", "gramos": "g", "kilo": "kg", "kilos": "kg",
    "kilogramm": "kg", "kgs": "kg", "gms": "g", "gm": "g", "tonne": "t", "tonnen": "t", "litre": "L", "litres": "L",
    "liters": "L", "litro": "L", "litros": "L", "l": "L", "ltr": "L", "grad": "deg", "degre": "deg", "degres": "deg",
    "grado": "deg", "grados": "deg", "ohms": "ohm", "\u03a9": "ohm", "\u2126": "ohm", "prozent": "%",
    "percent": "%", "pct": "%",
    "pourcent": "%", "porciento": "%", "celsius": "degC", "degc": "degC", "fahrenheit": "degF", "degf": "degF",
    "°c": "degC", "°f": "degF", "°": "deg", "newtons": "N", "joules": "J", "watts": "W", "volts": "V", "amps": "A",
    "ampere": "A", "amperes": "A", "pascals": "Pa", "kcal": "kilocalorie", "cal": "calorie",
}  # fmt: skip
# Words inside a unit that join its parts.
_JOINERS = re.compile(r"\b(?:per|pro|par|por)\b", re.IGNORECASE)
_DEGREE = re.compile(
    r"(?:[°º˚]|\bdeg(?:rees?)?\b\.?|\bgrad\b|\bdegr[eé]s?\b|\bgrados?\b)\s*(C(?:elsius)?|F(?:ahrenheit)?)\b", re.I
)
_SQUARE = re.compile(r"\b(square|cubic|quadrat|kubik)[\s-]?", re.IGNORECASE)
_CURRENCIES = {"€": "eur", "eur": "eur", "euro": "eur", "euros": "eur", "$": "usd", "usd": "usd", "dollar": "usd",
               "dollars": "usd", "£": "gbp", "gbp": "gbp", "pound": "gbp", "pounds": "gbp"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitReading:
    """How a written unit relates to the wanted one.

    ``same``: they are one unit. ``convertible``: same dimension, ``value`` converted in ``converted``.
    ``confusable``: the same if look-alikes are replaced. ``missing``: nothing was written. ``wrong``: none of these.
    """

    relation: Literal["same", "convertible", "confusable", "missing", "wrong"]
    converted: float | None = None


@lru_cache(maxsize=1)
def _registry() -> Any:
    return pint.UnitRegistry(cache_folder=None)


def _factors(text: str) -> tuple[tuple[str, int], ...] | None:
    """(name, exponent) of each factor of a unit, or None where the text is not built like one."""
    text = _SUPERSCRIPTS.sub(lambda m: "^" + m[0].translate(_SUPERSCRIPT), text[:MAX_UNIT])
    text = _DEGREE.sub(lambda m: "deg" + m[1][0].upper(), text)
    text = unicodedata.normalize("NFKC", text).replace("\u03bc", "\u00b5").replace("\u2126", "\u03a9")
    text = re.sub(r"[‐‑‒–—−]", "-", text)
    text = re.sub(r"°(?![CF])", "deg", text)
    text = _SQUARE.sub(lambda m: "²" if m[1].casefold() in ("square", "quadrat") else "³", text)
    text = re.sub(r"([²³])([A-Za-z]+)", lambda m: f"{m[2]}^{2 if m[1] == '²' else 3}", text)
    text = _JOINERS.sub("/", text).replace("²", "^2").replace("³", "^3")
    text = re.sub(r"\*\*", "^", text)
    text = re.sub(r"[·⋅×∙•]", "*", text)
    text = re.sub(r"[()\[\].,;:!]+$|^[(\[.,;:]+", "", text.strip())
    text = re.sub(r"\s*([*/^])\s*", r"\1", text).replace("(", "").replace(")", "").strip()
    text = re.sub(r"\s+", "*", text)
    if not text:
        return None
    out: list[tuple[str, int]] = []
    at = 0
    while at < len(text):
        m = _FACTOR.match(text, at)
        if m is None or len(out) >= _MAX_FACTORS or (at and not m["op"]) or (not at and m["op"] == "*"):
            return None
        exponent = int(m["exp"]) if m["exp"] else 1
        if m["op"] == "/":
            exponent = -exponent
        at = m.end()
        if not exponent or abs(exponent) > _MAX_EXPONENT:
            return None
        name = m["name"]
        synonym = _SYNONYMS.get(name) or _SYNONYMS.get(name.casefold()) if not _known(name) or name == "l" else name
        synonym = synonym or (name.casefold() if len(name) > 2 and not _known(name) else name)
        if synonym != name and any(c in synonym for c in "/^"):
            inner = _factors(synonym)
            if inner is None:
                return None
            out.extend((n, e * exponent) for n, e in inner)
        else:
            out.append((synonym, exponent))
    return tuple(out)


@lru_cache(maxsize=2048)
def _known(name: str) -> bool:
    """Whether pint knows ``name`` (letters, at most 24, or a percent sign) as a unit."""
    if name in _SHADOWED:
        return False
    with _lock:
        try:
            return bool(_registry().parse_unit_name(name))
        except Exception:  # pint raises many kinds for odd names; all mean "no unit"
            return False


# Names that pint reads as something no pupil means.
_SHADOWED = frozenset({"sec", "std", "an", "ans", "ano", "tag", "cal", "kph", "grad", "hr", "cc", "kilo", "gm", "as"})


def _unit(factors: tuple[tuple[str, int], ...]) -> Any | None:
    """A pint unit, or None where a name is unknown."""
    with _lock:
        registry = _registry()
        try:
            unit = registry.Unit("")
            for name, exponent in factors:
                canonical = {"%": "percent", "‰": "permille"}.get(name, name)
                if not _known(canonical):
                    return None
                unit = unit * registry.Unit(registry.get_name(canonical)) ** exponent
            return unit
        except Exception:  # see _known
            return None


def _parse(text: str) -> Any | None:
    factors = _factors(text)
    return _unit(factors) if factors else None


@lru_cache(maxsize=512)
def _wanted(text: str) -> Any | None:
    return _parse(text)


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    word = "".join(c for c in folded if c.isalnum() or c in "€$£%/°")
    return _CURRENCIES.get(word, word)


def _convert(value: float, given: Any, wanted: Any) -> float | None:
    with _lock:
        try:
            return float(_registry().Quantity(value, given).to(wanted).magnitude)
        except Exception:  # other dimension, offset units in products, overflow
            return None


def compare_units(written: str, wanted: str, value: float) -> UnitReading:
    """How ``written`` (what follows the number) relates to the key's unit ``wanted``. Never raises.

    Only the first words of ``written`` are looked at, the longest run of them that makes a unit.
    """
    written = " ".join(written.split())[: 2 * MAX_UNIT].strip(" .,;:!()[]=_")
    if not written or not any(c.isalpha() or c in "%‰°º˚€$£" for c in written):
        return UnitReading("missing")
    goal = _wanted(wanted[:MAX_UNIT])
    words = written.split(" ")
    wrong_dimension = False
    for n in range(min(4, len(words)), 0, -1):
        part = " ".join(words[:n])
        if _plain(part) == _plain(wanted) and part.strip(".,;") == wanted:
            return UnitReading("same", value)
        # A bare C, F or K beside a key in degrees is the temperature, not coulomb or farad.
        if wanted in ("°C", "°F", "degC", "degF") and part.strip(".°º˚ ").upper() == wanted[-1]:
            return UnitReading("same", value)
        given = _parse(part)
        if given is not None and goal is not None:
            if given == goal:
                return UnitReading("same", value)
            converted = _convert(value, given, goal)
            if converted is not None:
                relation: Literal["confusable", "convertible"] = "convertible"
                # "MW" beside "mW": reading does not tell the case of a letter.
                if _plain(part) == _plain(wanted):
                    relation = "confusable"
                return UnitReading(relation, converted)
            wrong_dimension = True
        if _plain(part) == _plain(wanted) or _plural_of(_plain(part), _plain(wanted)):
            return UnitReading("same", value)
    first = " ".join(words[:3])
    for part in (first, words[0]):
        a, b = fold_confusables(_plain(part)), fold_confusables(_plain(wanted))
        if a == b or (len(b) >= 3 and not wrong_dimension and Levenshtein.distance(a, b) <= 1):
            return UnitReading("confusable", value)
    # Lost signs: "0C" for "°C", "m/s?" for "m/s²".
    stripped = re.sub(r"^[0oº˚*'\"]+\s?(?=[CF]\b)", "°", first)
    if stripped != first and _plain(stripped) == _plain(wanted):
        return UnitReading("confusable", value)
    return UnitReading("wrong")


def _plural_of(a: str, b: str) -> bool:
    """Whether one word is the other with a plural ending."""
    short, long = sorted((a, b), key=len)
    return len(short) > 2 and long.startswith(short) and long[len(short) :] in ("s", "es", "n", "en", "e")


def same_dimension(written: str, wanted: str) -> bool:
    """Whether both are units of one dimension. False where either is not a unit."""
    return compare_units(written, wanted, 1.0).relation in ("same", "convertible")
