"""A number, with a unit where the key has one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from services.grading_worker.quantities import Candidate, UnitReading, compare_units, find_numbers
from shared.contracts import AnswerKey, MatchKind, Numeric

from .base import Answer, Kind, Verdict, number_text

# Relative error of arithmetic on what was written, never a tolerance of the answer.
_EPSILON = 1e-9
_OR = re.compile(r"\b(?:or|oder|ou|either|maybe|perhaps)\b", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"^(?:±|\+\s?/?\s?-)")


@dataclass(frozen=True, slots=True)
class _Reading:
    """A candidate held against the key. ``off`` is how far the value is away, in the key's unit."""

    candidate: Candidate
    unit: UnitReading
    value: float
    share: float
    match: str


class NumericKind(Kind[Numeric]):
    name = "numeric"
    one_line = True

    def expected(self, question: Numeric, key: AnswerKey) -> str:
        bound = _bound(question)
        text = number_text(question.answer) + (f" {_shown(question.unit)}" if question.unit else "")
        return f"{text} (± {number_text(bound)})" if bound else text

    def judge(self, question: Numeric, answer: Answer, key: AnswerKey) -> Verdict:
        candidates = find_numbers(answer.text, key.locale)
        if not candidates:
            return Verdict(0, "wrong", "A number is asked for here.", 0.85, "No number was found in the answer.")
        readings = [_hold(question, c) for c in candidates]
        plain = [r for r in readings if not r.candidate.altered]
        sound = [r for r in plain if not r.candidate.ambiguous]
        # As written and as the locale has it; then other separators; then with look-alikes replaced.
        for group in (sound, plain, readings):
            right = [r for r in group if r.share > 0]
            if right:
                best = max(right, key=lambda r: r.share)
                others = {round(r.candidate.value, 12) for r in sound} - {round(best.candidate.value, 12)}
                return _credit(question, answer, best, len(others) if group is not readings else 0)
        # The number without its unit, where the key gives nothing for that.
        unpaid = [r for r in sound if r.match == "partial" and _is_right(question, r.value)[0]]
        return _credit(question, answer, unpaid[0], 0) if unpaid else _wrong(question, answer, sound or readings)


def _bound(question: Numeric) -> float:
    return max(question.tolerance.absolute, question.tolerance.relative * abs(question.answer))


def _is_right(question: Numeric, value: float) -> tuple[bool, bool]:
    """(within tolerance, exact)."""
    off = abs(value - question.answer)
    slack = _EPSILON * max(abs(question.answer), abs(value), 1e-300)
    return off <= _bound(question) + slack, off <= slack


def _hold(question: Numeric, candidate: Candidate) -> _Reading:
    value = candidate.value
    if question.unit is None:
        within, exact = _is_right(question, value)
        percent = candidate.rest.startswith(("%", "percent", "prozent"))
        if not within and percent:
            within, exact = _is_right(question, value / 100)[0], False
        match = "exact" if exact else "within_tolerance" if _is_right(question, value)[0] else "equivalent"
        return _Reading(candidate, UnitReading("same", value), value, 1.0 if within else 0.0, match)
    unit = compare_units(_unit_text(candidate.rest), question.unit, value)
    as_written, exact = _is_right(question, value)
    converted = unit.converted if unit.converted is not None else value
    if unit.relation in ("same", "convertible"):
        within, exact_converted = _is_right(question, converted)
        if within:
            if unit.relation == "same":
                return _Reading(candidate, unit, converted, 1.0, "exact" if exact_converted else "within_tolerance")
            return _Reading(candidate, unit, converted, 1.0, "equivalent")
        share = question.unit_credit if unit.relation == "convertible" and as_written else 0.0
        return _Reading(candidate, UnitReading("wrong"), value, share, "partial")
    if unit.relation == "confusable":
        share = 1.0 if as_written or _is_right(question, converted)[0] else 0.0
        return _Reading(candidate, unit, value, share, "close")
    if as_written:
        return _Reading(candidate, unit, value, question.unit_credit, "partial")
    return _Reading(candidate, unit, value, 0.0, "wrong")


def _unit_text(rest: str) -> str:
    """What follows a number, without an uncertainty ("± 0.1")."""
    if _PLUS_MINUS.match(rest):
        return re.sub(r"^(?:±|\+\s?/?\s?-)\s*[\d.,]+\s*", "", rest)
    return rest.lstrip(" ;")


def _credit(question: Numeric, answer: Answer, best: _Reading, others: int) -> Verdict:
    given = number_text(best.candidate.value)
    altered = best.candidate.altered or best.unit.relation == "confusable"
    doubt: str | None = None
    sure = 0.98
    if best.candidate.ambiguous:
        doubt, sure = "The point or comma may part decimals or thousands.", 0.7
    if others:
        if _OR.search(answer.text):
            return Verdict(
                0, "wrong", "Decide on one number: several are given here.", 0.65, "More than one number is offered."
            )
        doubt, sure = doubt or "More than one number is written.", min(sure, 0.65)
    if altered:
        sure = min(sure, 0.6)
    if best.match == "partial":
        missing = best.unit.relation == "missing"
        feedback = (
            f"The number is right, but the unit is missing: write {_shown(question.unit)}."
            if missing
            else f"The number is right, but the unit is not: it should be {_shown(question.unit)}."
        )
        if not missing and answer.was_read and answer.confidence < 0.85:
            doubt = doubt or "The unit may have been misread."
        match: MatchKind = "wrong" if best.share == 0 else "partial" if best.share < 1 else "close"
        return Verdict(best.share, match, feedback, min(sure, 0.85), doubt, altered)
    unit = f" {_shown(question.unit)}" if question.unit and best.unit.relation == "same" else ""
    if altered:
        return Verdict(best.share, "close", f"Right: {given}{unit}.", sure, doubt, True)
    if best.match == "within_tolerance":
        feedback = f"Right: {given}{unit} is within {number_text(_bound(question))} of the expected value."
        return Verdict(1, "within_tolerance", feedback, min(sure, 0.96), doubt)
    if best.match == "equivalent":
        return Verdict(
            1, "equivalent", "Right: this is the expected value, written another way.", min(sure, 0.9), doubt
        )
    plain = re.fullmatch(r"[-+]?\d+(?:[.,]\d+)?", best.candidate.written)
    return Verdict(
        1, "exact" if plain else "equivalent", f"Right: {given}{unit}.", sure if plain else min(sure, 0.94), doubt
    )


def _wrong(question: Numeric, answer: Answer, readings: list[_Reading]) -> Verdict:
    near = min(readings, key=lambda r: abs(r.value - question.answer) if math.isfinite(r.value) else math.inf)
    feedback = "This is not the expected value."
    doubt: str | None = None
    off, bound = abs(near.value - question.answer), _bound(question)
    if near.candidate.rounding and off <= near.candidate.rounding * 1.000001 and off <= 0.02 * abs(question.answer):
        return Verdict(
            0, "close", "Very close: give more digits.", 0.5, "Right when rounded, but outside the tolerance."
        )
    if off <= max(2 * bound, 0.01 * abs(question.answer)):
        return Verdict(0, "close", "Close, but not close enough.", 0.7, "Just outside the tolerance.")
    if near.value == -question.answer:
        feedback = "The amount is right, but the sign is not."
        doubt = "The sign may have been lost in reading." if answer.was_read else None
    elif answer.was_read:
        given, wanted = _figures(near.candidate.written), _figures(number_text(question.answer))
        if given == wanted:
            doubt = "Only the decimal point differs from the expected number."
        elif answer.confidence < 0.9 and len(wanted) > 1 and Levenshtein.distance(given, wanted) == 1:
            doubt = "One digit differs from the expected number: it may have been misread."
    return Verdict(0, "wrong", feedback, 0.6 if doubt else 0.95, doubt)


def _shown(unit: str | None) -> str:
    """A key's unit as it is printed: "m/s^2" → "m/s²"."""
    return re.sub(r"(?:\^|\*\*)(-?)([0-9])", lambda m: ("⁻" if m[1] else "") + "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[2])], unit or "")


def _figures(written: str) -> str:
    return "".join(c for c in written if c.isdigit()).strip("0")


KIND = NumericKind()
