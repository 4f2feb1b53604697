"""Prefixed, time-ordered public ids (``job_01j…``) over UUIDv7, in the TypeID encoding.

Inside Postgres an id is a ``uuid``; outside it is always the prefixed form, so that an id says
what it names and a paste into the wrong call is caught before any query.
Encoding: TypeID spec 0.3 (prefix, underscore, 26 characters of lower-case Crockford base32).
"""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import uuid_utils

__all__ = ["IdKind", "InvalidId", "decode", "encode", "new_uuid"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {c: i for i, c in enumerate(_ALPHABET)}


class IdKind(StrEnum):
    """What an id names; the value is its public prefix."""

    JOB = "job"
    BATCH = "bat"
    DOCUMENT = "doc"
    SUBMISSION = "sub"
    STANDARD = "std"
    GRADING = "grd"
    ORGANISATION = "org"
    MEMBER = "mem"
    API_KEY = "key"


class InvalidId(ValueError):
    """The text is not an id of the wanted kind."""


def new_uuid() -> UUID:
    """A new UUIDv7: unique, and ordered by creation time to the millisecond."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def encode(kind: IdKind, value: UUID) -> str:
    """The public form of an id: 30 characters, e.g. ``job_01h455vb4pex5vsknk084sn02q``."""
    n = value.int
    chars = []
    for _ in range(26):
        chars.append(_ALPHABET[n & 31])
        n >>= 5
    return f"{kind.value}_{''.join(reversed(chars))}"


def decode(kind: IdKind, text: str) -> UUID:
    """The UUID behind a public id.

    Raises InvalidId when the prefix is another kind's or the text is not 26 base32 characters.
    """
    prefix, _, body = text.rpartition("_")
    if prefix != kind.value or len(body) != 26:
        raise InvalidId(f"expected an id like {kind.value}_… with 26 characters after the underscore")
    n = 0
    for c in body:
        v = _VALUES.get(c)
        if v is None:
            raise InvalidId(f"expected an id like {kind.value}_… with letters and digits after the underscore")
        n = n << 5 | v
    if n >> 128:
        raise InvalidId(f"that {kind.value}_… id is out of range")
    return UUID(int=n)
