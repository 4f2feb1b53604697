"""Validation errors in words: which field, and what to do about it. Never the value, which may be student work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

__all__ = ["MAX_NAME", "field_errors", "sentence"]

# Names of fields come from outside; longer ones are cut where they are repeated.
MAX_NAME = 100
MAX_ERRORS = 50

# The kinds of a question: Pydantic puts the one that was chosen into the path, where no field of that name is.
_TAGS = frozenset(("single_choice", "multiple_choice", "true_false", "numeric", "short_text", "list"))

# By the type of a Pydantic error; its context fills the blanks.
_RULES: dict[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not a field that this request has",
    "union_tag_not_found": "is required",
    "union_tag_invalid": "must be one of {expected_tags}",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "string_too_long": "may have at most {max_length} characters",
    "string_pattern_mismatch": "has characters that are not allowed here",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "finite_number": "must be a number, and not an endless one",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be an object with named values",
    "model_type": "must be an object with named values",
    "model_attributes_type": "must be an object with named values",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "timezone_aware": "must name its time zone, for example 2026-01-31T08:00:00Z",
}
_COUNTED = {"string_too_short": ("character", "must have"), "too_short": ("entry", "must have")}


def field_errors(e: ValidationError) -> list[dict[str, Any]]:
    """Each field at fault once: ``param`` (a dotted path, "" for the whole body), ``code``, ``detail``."""
    raw = e.errors(include_url=False, include_input=False)
    places = [tuple(x["loc"]) for x in raw]
    found = []
    for x, place in zip(raw, places, strict=True):
        # A list with a bad entry is also reported as too short, since the bad one was not counted.
        if x["type"] == "too_short" and any(p[: len(place)] == place and len(p) > len(place) for p in places):
            continue
        found.append(
            {"param": _path(place, x["type"]), "code": x["type"], "detail": _rule(x["type"], x.get("ctx"), x["msg"])}
        )
    return found[:MAX_ERRORS]


def sentence(param: str, rule: str) -> str:
    """``param`` and its rule as a sentence."""
    if not param:
        return f"{rule[:1].upper()}{rule[1:]}."
    joint = " " if rule.startswith(("must ", "is ", "may ", "has ")) else ": "
    return f"{param}{joint}{rule}."


def _path(place: Iterable[int | str], code: str) -> str:
    parts: list[str] = []
    after_index = False
    for p in place:
        if not (after_index and p in _TAGS) and p != "[key]":
            parts.append(str(p)[:MAX_NAME])
        after_index = isinstance(p, int)
    if code in ("union_tag_invalid", "union_tag_not_found"):
        parts.append("kind")
    return ".".join(parts)


def _rule(code: str, context: Mapping[str, Any] | None, message: str) -> str:
    context = context or {}
    if code == "value_error":
        return str(context.get("error", message))[:500]
    if code in _COUNTED:
        thing, verb = _COUNTED[code]
        least = context["min_length"]
        if least == 1:
            return "must not be empty"
        return f"{verb} at least {least} {'entries' if thing == 'entry' else 'characters'}"
    if code == "too_long":
        return f"may have at most {context['max_length']} entries"
    if code.startswith("datetime"):
        return "must be a time, for example 2026-01-31T08:00:00Z"
    rule = _RULES.get(code)
    return rule.format(**context) if rule is not None else message[:1].lower() + message[1:]
