"""API keys: ``gl_<id>_<secret>_<checksum>``. Shown once, stored as a SHA-256 hash.

The secret carries 160 random bits, so a plain hash is enough and no lookup is slowed by a password hash.
The checksum lets a typing error or a leak scanner be told from a real key without asking the database.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from dataclasses import dataclass
from uuid import UUID

from shared.ids import IdKind, InvalidId, decode, encode

__all__ = ["NewKey", "digest", "key_id", "new_key"]

_PREFIX = "gl"
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class NewKey:
    id: UUID
    text: str
    hash: bytes


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def new_key(id: UUID) -> NewKey:
    """A fresh key for the row ``id``. Keep ``hash``, show ``text`` once."""
    secret = "".join(_BASE32[b & 31] for b in secrets.token_bytes(32))
    body = f"{_PREFIX}_{encode(IdKind.API_KEY, id).partition('_')[2]}_{secret}"
    text = f"{body}_{_checksum(body)}"
    return NewKey(id, text, digest(text))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def key_id(text: str) -> UUID | None:
    """The row that a key names, or None when the text cannot be one of our keys."""
    body, _, checksum = text.rpartition("_")
    parts = body.split("_")
    if len(parts) != 3 or parts[0] != _PREFIX or len(parts[2]) != 32 or _checksum(body) != checksum:
        return None
    try:
        return decode(IdKind.API_KEY, f"{IdKind.API_KEY.value}_{parts[1]}")
    except InvalidId:
        return None
