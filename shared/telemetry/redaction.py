"""What may leave the process in a log line or an error report: ids, sizes, timings and our own sentences.

The rules are about mistakes, not about malice: a developer who logs ``name=…`` or an exception whose text quotes
a student's answer must not leak it.
"""

from __future__ import annotations

import enum
import re
import traceback
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import PurePath
from typing import Any
from uuid import UUID

__all__ = ["describe_exception", "is_forbidden", "safe_message", "safe_value"]

MAX_STRING = 300
_MAX_ITEMS = 20
_MAX_DEPTH = 4
_MAX_FRAMES = 30
_MAX_CHAIN = 5

# A key is dropped when any of its words (split at _, -, . and CamelCase) is one of these. The later ones are
# what libraries call whole messages.
_FORBIDDEN = frozenset(
    {
        "name", "names", "text", "texts", "email", "emails", "mail", "mails", "prompt", "prompts", "token", "tokens",
        "authorization", "authorisation", "auth", "password", "passwords", "passwd", "payload", "payloads", "body",
        "bodies", "answer", "answers", "given", "expected", "secret", "secrets", "cookie", "cookies", "content",
        "contents", "filename", "filenames", "school", "student", "comment", "comments", "feedback", "message",
        "messages", "transcript", "word", "words", "line", "lines", "credentials", "dsn", "signature", "session",
        "apikey", "query", "args", "kwargs", "argv", "params", "recipient", "recipients", "to", "cc", "bcc", "subject",
        "address", "addresses", "phone", "birthday", "headers", "form", "data", "html", "response", "request", "input",
        "output",
    }
)  # fmt: skip
# … unless its last word says that it is an id, or a measure of the thing rather than the thing.
_IDS = frozenset({"id", "ids"})
_MEASURES = frozenset(
    {"count", "bytes", "size", "length", "len", "chars", "pages", "seconds", "ms", "total", "tokens", "words", "lines",
     "messages", "recipients"}
)  # fmt: skip
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ID_VALUE = re.compile(r"[A-Za-z0-9_\-:.]{1,64}")
# Under these keys goes a code or a type's name. A sentence is an exception's text, which quotes what it choked on:
# "Key (name)=(Anna) already exists".
_REASONS = frozenset({"error", "errors", "exception", "exc", "err", "detail", "details", "reason", "cause", "code"})
_CODE = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")


def is_forbidden(key: str, value: object = None) -> bool:
    """Must ``key`` be dropped? ``student_name`` yes, and an ``error`` that is a text; ``student_id`` and a numeric
    ``prompt_tokens`` no."""
    words = [w.lower() for w in _WORDS.findall(key)]
    if not words:
        return False
    if words[-1] in _REASONS and isinstance(value, str) and not _CODE.fullmatch(value):
        return True
    if not _FORBIDDEN.intersection(words):
        return False
    if words[-1] in _IDS and len(words) > 1:
        ids = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
        if "student" in words and not any(c.isdigit() for i in ids for c in str(i)):
            return True  # what a school calls an id may be the name
        return not all(isinstance(i, (UUID, int)) or (isinstance(i, str) and _ID_VALUE.fullmatch(i)) for i in ids)
    return not (words[-1] in _MEASURES and isinstance(value, (int, float)) and not isinstance(value, bool))


def safe_value(value: object, depth: int = 0) -> Any:
    """A JSON-ready stand-in: strings cut at 300 characters, nested forbidden keys gone, unknown objects by type."""
    match value:
        case None | bool() | int() | float():
            return value
        case enum.Enum():
            return safe_value(value.value, depth)
        case str():
            return value if len(value) <= MAX_STRING else f"{value[:MAX_STRING]}… ({len(value)} characters)"
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case UUID() | date() | datetime():
            return str(value)
        case timedelta():
            return value.total_seconds()
        case PurePath():
            return f"<path …{value.suffix[:8]}>"  # a path may end in a student's name
        case BaseException():
            return safe_message(value)
        case _ if depth >= _MAX_DEPTH:
            return f"<{type(value).__name__}>"
        case Mapping():
            items = [(str(k), v) for k, v in list(value.items())[:_MAX_ITEMS]]
            return {k[:MAX_STRING]: safe_value(v, depth + 1) for k, v in items if not is_forbidden(k, v)}
        case list() | tuple() | set() | frozenset():
            kept = [safe_value(v, depth + 1) for v in list(value)[:_MAX_ITEMS]]
            return [*kept, f"… {len(value) - _MAX_ITEMS} more"] if len(value) > _MAX_ITEMS else kept
        case _:
            return f"<{type(value).__name__}>"


def safe_message(error: BaseException) -> str:
    """An exception in one line: its type, and its code and sentence where it is a ``JobError``.

    Told by shape (``code``, ``message``, ``retryable``), because telemetry lies beneath ``shared.jobs``. Any
    other text is withheld: ``int('Anna')`` and database errors quote what they choke on.
    """
    name = type(error).__name__
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if isinstance(code, str) and isinstance(message, str) and isinstance(getattr(error, "retryable", None), bool):
        return f"{name}: {code}: {message[:MAX_STRING]}"
    return name


def describe_exception(error: BaseException) -> list[dict[str, Any]]:
    """The exception and what led to it, newest first: ``{"type", "frames"}``; frames as ``file:line function``."""
    chain: list[dict[str, Any]] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(chain) < _MAX_CHAIN:
        seen.add(id(current))
        frames = [
            f"{code.co_filename}:{line} {code.co_name}"
            for code, line in ((f.f_code, n) for f, n in traceback.walk_tb(current.__traceback__))
        ]
        chain.append({"type": safe_message(current), "frames": frames[-_MAX_FRAMES:]})
        if isinstance(current, BaseExceptionGroup):
            chain[-1]["group"] = [safe_message(e) for e in current.exceptions[:_MAX_ITEMS]]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain
